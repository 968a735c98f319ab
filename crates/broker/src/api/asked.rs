//! What a request asks for, for its record in the audit: the extractors keep it, the middleware takes it.

use std::sync::{Arc, Mutex};

use hvsock_sys::sync::lock;
use serde_json::Value;

use crate::audit::{MAX_TEXT, visible};

/// The path of the request that is no change: what a process says about its own connection is part of
/// that connection's record.
pub(super) const RESULT_PATH: &str = "/v1/connections/{id}/result";

/// The largest body that is shown. A larger one is a file.
const MAX_SHOWN: usize = 4096;

/// The body of a request, as far as a handler has read it. An extension of the request.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(Arc<Mutex<Body>>);

/// What is kept of a body.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// On one line.
    pub text: Option<String>,
    /// The fields `name` and `vm`, if they are texts.
    pub name: Option<String>,
    pub vm: Option<String>,
}

impl Asked {
    /// Keeps the length of a body.
    pub fn set_size(&self, bytes: usize) {
        if bytes > 0 {
            lock(&self.0).text = Some(format!("({bytes} bytes)"));
        }
    }

    /// Keeps a JSON body on one line, without what it leaves unset.
    pub fn set_body(&self, body: &[u8]) {
        if body.len() > MAX_SHOWN {
            return;
        }
        let mut kept = lock(&self.0);
        let text = match serde_json::from_slice::<Value>(body) {
            Ok(value) => {
                let field = |name: &str| value.get(name)?.as_str().map(str::to_owned);
                (kept.name, kept.vm) = (field("name"), field("vm"));
                set_parts(value).to_string()
            }
            Err(_) => String::from_utf8_lossy(body).into_owned(),
        };
        kept.text = Some(visible(&text, MAX_TEXT));
    }

    /// Takes what is kept.
    pub fn take(&self) -> Body {
        std::mem::take(&mut lock(&self.0))
    }
}

/// A value without the fields of objects that are null or empty.
fn set_parts(value: Value) -> Value {
    let is_set = |value: &Value| match value {
        Value::Null => false,
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    match value {
        Value::Object(fields) => {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (name, set_parts(value)));
            Value::Object(fields.filter(|(_, value)| is_set(value)).collect())
        }
        Value::Array(items) => items.into_iter().map(set_parts).collect(),
        value => value,
    }
}
