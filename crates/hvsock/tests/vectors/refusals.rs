//! The codes, labels, error numbers and texts of refusals.

use hvsock::Refusal;

use crate::json::{number, rows, sections, text};

const FILE: &str = include_str!("../../../../docs/vectors/refusals.json");

#[test]
fn every_refusal_has_a_vector_with_its_numbers_and_its_text() {
    assert_eq!(sections(FILE), ["refusals", "unknown"]);
    let rows = rows(FILE, "refusals");
    let labels: Vec<_> = rows.iter().map(|row| text(row, "label")).collect();
    assert_eq!(labels, Refusal::ALL_LABELS, "in the order of the codes");
    for row in rows {
        let refusal = Refusal::from_wire(number(&row, "code"), text(&row, "detail"));
        assert_eq!(refusal.code(), number(&row, "code"));
        assert_eq!(refusal.label(), text(&row, "label"));
        assert_eq!(refusal.detail(), text(&row, "detail"), "{row}");
        assert_eq!(i64::from(refusal.errno()), i64::from(number(&row, "errno")));
        assert_eq!(i64::from(refusal.wsa()), i64::from(number(&row, "wsa")));
        assert_eq!(format!("{:?}", refusal.kind()), text(&row, "io_kind"));
        assert_eq!(refusal.to_string(), text(&row, "text"));
    }
}

#[test]
fn an_unknown_code_is_a_reset_with_the_cause_of_the_vector() {
    for row in rows(FILE, "unknown") {
        let refusal = Refusal::from_wire(number(&row, "code"), text(&row, "detail"));
        let cause = text(&row, "cause").to_owned();
        assert_eq!(refusal, Refusal::Reset { cause });
    }
}
