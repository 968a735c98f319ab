//! Checks docs/endpoint.md against the code: its examples are valid messages, and its tables are
//! complete.

#![cfg(target_os = "linux")]

use hvsock::Refusal;
use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};

const PAGE: &str = include_str!("../../../docs/endpoint.md");

/// The cells of every table row on the page whose first cell is a number.
fn rows() -> impl Iterator<Item = (u32, Vec<&'static str>)> {
    PAGE.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let number = match cells[0].strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => cells[0].parse(),
        };
        Some((number.ok()?, cells))
    })
}

#[test]
fn every_example_is_a_message_that_encodes_to_itself() {
    let examples: Vec<Vec<u8>> = PAGE
        .split("```hex\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```"))
        .map(|(hex, _)| {
            let bytes = hex
                .split_whitespace()
                .map(|byte| u8::from_str_radix(byte, 16));
            bytes.collect::<Result<_, _>>().expect("hexadecimal")
        })
        .collect();
    assert_eq!(examples.len(), 19);
    for example in examples {
        let mut encoded = Vec::new();
        match example[1] & 0x80 {
            0 => ClientMessage::decode(&example)
                .expect("a message")
                .encode(&mut encoded),
            _ => BrokerMessage::decode(&example)
                .expect("a message")
                .encode(&mut encoded),
        }
        assert_eq!(encoded, example);
    }
}

#[test]
fn every_refusal_is_in_the_table() {
    for (index, label) in Refusal::ALL_LABELS.iter().enumerate() {
        let code = index as u32 + 1;
        let refusal = Refusal::from_wire(code, "x");
        let (_, cells) = rows()
            .find(|(number, cells)| *number == code && cells.get(1) == Some(label))
            .unwrap_or_else(|| panic!("no row for {code} {label}"));
        assert_eq!(cells[2].parse(), Ok(refusal.errno()), "{label}");
        assert_eq!(cells[3].is_empty(), refusal.detail().is_empty(), "{label}");
    }
}

#[test]
fn every_option_is_in_the_table() {
    for (number, cells) in rows().filter(|(_, cells)| cells[0].starts_with("0x")) {
        let option = SocketOption::from_number(number).expect("an option");
        let squeezed = cells[1].replace('_', "").to_lowercase();
        assert_eq!(squeezed, format!("{option:?}").to_lowercase());
    }
}

#[test]
fn every_kind_of_message_has_the_length_that_the_page_gives_it() {
    let mut kinds = 0;
    for (at, _) in PAGE.match_indices("**0x") {
        // `**0x02 SET_OPTION**, 12 bytes`
        let (kind, rest) = PAGE[at + 4..].split_once("**").expect("a bold kind");
        let kind = u8::from_str_radix(&kind[..2], 16).expect("a kind");
        let length = rest
            .strip_prefix(", ")
            .and_then(|rest| rest.split_once(" bytes"));
        let Some(Ok(length)) = length.map(|(length, _)| length.parse::<usize>()) else {
            continue;
        };
        kinds += 1;
        // Set to 1: zero is the only invalid value of the fields of these kinds.
        for tried in 4..=100 {
            let mut bytes = vec![0; tried];
            bytes[..2].copy_from_slice(&[1, kind]);
            for at in [4, 8] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = 1;
                }
            }
            let decoded = match kind & 0x80 {
                0 => ClientMessage::decode(&bytes).map(drop),
                _ => BrokerMessage::decode(&bytes).map(drop),
            };
            assert_eq!(
                decoded.is_ok(),
                tried == length,
                "{kind:#x} with {tried} bytes"
            );
        }
    }
    assert_eq!(kinds, 18, "the page's kinds of fixed length");
    assert!(PAGE.contains(&format!("of 4 to {MAX_MESSAGE} bytes")));
}
