//! One GET request over a manager's Unix socket. It is of HTTP/1.0, whose answers have no chunks and end with
//! the connection or with their stated length.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::error::Unavailable;
use crate::wire::Wire;

/// The length of a line of the answer's head, and the number of lines.
const MAX_LINE: usize = 16 << 10;
const MAX_LINES: usize = 200;

/// Gets a JSON document. The text of a refusal is the body's `error` or `fault_message`, else the status line.
pub fn get(socket: &Path, target: &str, deadline: Instant) -> Result<Value, Unavailable> {
    let mut wire = Wire::connect(socket, deadline)?;
    let request = format!(
        "GET {target} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\
         Connection: close\r\n\r\n"
    );
    wire.write(request.as_bytes())?;
    let line = wire.line(b'\n', MAX_LINE)?;
    let line = String::from_utf8_lossy(&line).trim().to_owned();
    let status: u16 = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| wire.invalid("it does not speak HTTP"))?;
    let mut length = None;
    for count in 0.. {
        let header = wire.line(b'\n', MAX_LINE)?;
        let header = String::from_utf8_lossy(&header);
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        if count == MAX_LINES {
            return Err(wire.invalid("the answer's head is too long"));
        }
        let (name, value) = header.split_once(':').unwrap_or((header, ""));
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<usize>().ok(),
            "transfer-encoding" => return Err(wire.invalid("it sends chunks")),
            _ => {}
        }
    }
    let body = match length {
        Some(length) => wire.read(length)?,
        None => wire.rest()?,
    };
    let document = serde_json::from_slice::<Value>(&body);
    match status {
        200..=299 => document.map_err(|_| wire.invalid("the answer is no JSON")),
        401 | 403 => Err(wire.forbidden()),
        _ => {
            let document = document.unwrap_or_default();
            let why = ["error", "fault_message"]
                .iter()
                .find_map(|key| document.get(key)?.as_str());
            Err(wire.refused(why.unwrap_or(&line)))
        }
    }
}
