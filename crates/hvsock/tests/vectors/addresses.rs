//! Text and bytes of addresses.

use std::fmt::Display;
use std::str::FromStr;

use hvsock::{
    AddressError, HvUrl, InvalidName, ParseRefError, ParseUrlError, PartitionRef, ServiceId,
    ServiceRef, SockAddrHv, VmId,
};
use hvsock_address::SockAddrVm;
use serde_json::Value;

use crate::json::{bytes, guid, hex, number, rows, sections, text};

const FILE: &str = include_str!("../../../../docs/vectors/addresses.json");

#[test]
fn every_section_of_addresses_is_known() {
    let mut known = [
        "containers",
        "guids",
        "invalid_guids",
        "invalid_partitions",
        "invalid_services",
        "invalid_sockaddr_hv",
        "invalid_sockaddr_vm",
        "invalid_urls",
        "nested_containers",
        "partitions",
        "services",
        "sockaddr_hv",
        "sockaddr_vm",
        "urls",
        "vsock_aliases",
        "vsock_ports",
        "well_known",
    ];
    known.sort_unstable();
    let mut found = sections(FILE);
    found.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn guids_have_the_text_and_the_bytes_of_the_vectors() {
    for row in rows(FILE, "guids") {
        let id: ServiceId = guid(&row, "text");
        assert_eq!(id.to_string(), text(&row, "guid"));
        assert_eq!(hex(&id.to_guid_bytes()), text(&row, "bytes"));
        let bytes = bytes(&row, "bytes").try_into().expect("16 bytes");
        assert_eq!(ServiceId::from_guid_bytes(bytes), id);
    }
    for row in rows(FILE, "invalid_guids") {
        assert!(text(&row, "text").parse::<VmId>().is_err(), "{row}");
    }
}

#[test]
fn every_well_known_partition_has_a_vector() {
    let rows = rows(FILE, "well_known");
    assert_eq!(rows.len(), VmId::WELL_KNOWN.len());
    for (word, id) in VmId::WELL_KNOWN {
        let row = rows.iter().find(|row| text(row, "word") == word);
        let row = row.unwrap_or_else(|| panic!("no vector for {word}"));
        assert_eq!(guid::<VmId>(row, "guid"), id);
        let constant = format!("HV_GUID_{}", word.to_uppercase());
        assert_eq!(text(row, "constant"), constant);
    }
}

/// Checks that text parses to a GUID or a name, and how it is printed.
fn check_reference<T: FromStr + Display + PartialEq>(row: &Value, id_of: fn(&T) -> Option<String>)
where
    T::Err: Display,
{
    let parsed = text(row, "text").parse::<T>();
    let parsed = parsed.unwrap_or_else(|error| panic!("{row}: {error}"));
    match id_of(&parsed) {
        Some(id) => assert_eq!(row["guid"], id, "{row}"),
        None => assert_eq!(row["name"], parsed.to_string(), "{row}"),
    }
    assert_eq!(parsed.to_string(), text(row, "display"));
    let again = text(row, "display").parse::<T>();
    assert!(again.is_ok_and(|again| again == parsed), "{row}");
}

fn partition_id(partition: &PartitionRef) -> Option<String> {
    match partition {
        PartitionRef::Id(id) => Some(id.to_string()),
        PartitionRef::Name(_) => None,
    }
}

fn service_id(service: &ServiceRef) -> Option<String> {
    match service {
        ServiceRef::Id(id) => Some(id.to_string()),
        ServiceRef::Name(_) => None,
    }
}

fn error_of(error: &ParseRefError) -> &'static str {
    match error {
        ParseRefError::Partition(name) | ParseRefError::Service(name) => match name {
            InvalidName::Empty => "empty",
            InvalidName::TooLong { .. } => "too_long",
            InvalidName::Character { .. } => "character",
            InvalidName::Taken { .. } => "taken",
            InvalidName::Nested { .. } => "nested",
        },
        ParseRefError::PortTooLarge(_) => "port_too_large",
    }
}

#[test]
fn partitions_and_services_parse_and_print_as_in_the_vectors() {
    for row in rows(FILE, "partitions") {
        check_reference::<PartitionRef>(&row, partition_id);
    }
    for row in rows(FILE, "services") {
        check_reference::<ServiceRef>(&row, service_id);
        let Ok(ServiceRef::Id(id)) = text(&row, "text").parse() else {
            continue;
        };
        assert_eq!(row["port"].as_u64(), id.port().map(u64::from), "{row}");
    }
    for row in rows(FILE, "invalid_partitions") {
        let error = text(&row, "text").parse::<PartitionRef>();
        let error = error.expect_err("an invalid partition");
        assert_eq!(error_of(&error), text(&row, "error"), "{row}");
    }
    for row in rows(FILE, "invalid_services") {
        let error = text(&row, "text").parse::<ServiceRef>();
        let error = error.expect_err("an invalid service");
        assert_eq!(error_of(&error), text(&row, "error"), "{row}");
    }
}

#[test]
fn urls_parse_and_print_as_in_the_vectors() {
    for row in rows(FILE, "urls") {
        let url = text(&row, "text").parse::<HvUrl>();
        let url = url.unwrap_or_else(|error| panic!("{row}: {error}"));
        for (part, id, printed) in [
            (
                &row["partition"],
                partition_id(&url.partition),
                url.partition.to_string(),
            ),
            (
                &row["service"],
                service_id(&url.service),
                url.service.to_string(),
            ),
        ] {
            match id {
                Some(id) => assert_eq!(part["guid"], id, "{row}"),
                None => assert_eq!(part["name"], printed, "{row}"),
            }
        }
        assert_eq!(url.to_string(), text(&row, "display"));
        assert_eq!(text(&row, "display").parse(), Ok(url));
    }
    for row in rows(FILE, "invalid_urls") {
        let error = text(&row, "text").parse::<HvUrl>();
        let label = match error.expect_err("an invalid URL") {
            ParseUrlError::Scheme => "scheme",
            ParseUrlError::NoService => "no_service",
            ParseUrlError::Encoding => "encoding",
            ParseUrlError::Part(_) => "part",
        };
        assert_eq!(label, text(&row, "error"), "{row}");
    }
}

fn address_error(error: AddressError) -> &'static str {
    match error {
        AddressError::Short { .. } => "short",
        AddressError::Family { .. } => "family",
    }
}

#[test]
fn socket_addresses_have_the_bytes_of_the_vectors() {
    for row in rows(FILE, "sockaddr_hv") {
        let mut address = SockAddrHv::new(guid(&row, "vm"), guid(&row, "service"));
        address.flags = number(&row, "flags").try_into().expect("16 bits");
        assert_eq!(hex(&address.to_bytes()), text(&row, "bytes"));
        assert_eq!(SockAddrHv::from_bytes(&bytes(&row, "bytes")), Ok(address));
        assert_eq!(address.to_string(), text(&row, "display"));
    }
    for row in rows(FILE, "invalid_sockaddr_hv") {
        let error = SockAddrHv::from_bytes(&bytes(&row, "bytes"));
        let error = address_error(error.expect_err("an invalid address"));
        assert_eq!(error, text(&row, "error"), "{row}");
    }
}

// The vectors have the bytes of a little-endian machine, as `sockaddr_vm` is in native order.
#[cfg(target_endian = "little")]
#[test]
fn vsock_addresses_have_the_bytes_of_the_vectors() {
    for row in rows(FILE, "sockaddr_vm") {
        let address = SockAddrVm {
            cid: number(&row, "cid"),
            port: number(&row, "port"),
            flags: number(&row, "flags").try_into().expect("8 bits"),
        };
        assert_eq!(hex(&address.to_bytes()), text(&row, "bytes"));
        assert_eq!(SockAddrVm::from_bytes(&bytes(&row, "bytes")), Ok(address));
        assert_eq!(address.to_string(), text(&row, "display"));
    }
    for row in rows(FILE, "invalid_sockaddr_vm") {
        let error = SockAddrVm::from_bytes(&bytes(&row, "bytes"));
        let error = address_error(error.expect_err("an invalid address"));
        assert_eq!(error, text(&row, "error"), "{row}");
    }
}

#[test]
fn ids_are_derived_from_ports_and_from_containers_as_in_the_vectors() {
    for row in rows(FILE, "vsock_ports") {
        let id: ServiceId = guid(&row, "service");
        assert_eq!(ServiceId::from_port(number(&row, "port")), id);
        assert_eq!(id.port(), Some(number(&row, "port")));
    }
    for row in rows(FILE, "vsock_aliases") {
        let id: ServiceId = guid(&row, "service");
        assert_eq!(id.vsock_alias(), Some(number(&row, "alias")), "{row}");
    }
    for row in rows(FILE, "containers") {
        let id = VmId::of_container(text(&row, "runtime_id"));
        assert_eq!(id, guid(&row, "vm_id"), "{row}");
    }
    for row in rows(FILE, "nested_containers") {
        let id = VmId::of_nested(guid(&row, "vm"), guid(&row, "container"));
        assert_eq!(id, guid(&row, "vm_id"), "{row}");
    }
}
