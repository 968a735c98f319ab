//! A validator for values against the OpenAPI document, for the part of JSON Schema that it uses.

use serde_json::Value;

use crate::api::openapi;

/// The OpenAPI document.
pub fn document() -> Value {
    serde_json::from_str(&openapi()).unwrap()
}

/// Panics unless the document has the operation and status, and `value` matches the schema.
pub fn check(document: &Value, method: &str, path: &str, status: u16, value: &Value) {
    let what = format!("{method} {path} {status}");
    let operation = &document["paths"][path][method.to_lowercase()];
    let response = &operation["responses"][status.to_string()];
    assert!(response.is_object(), "{what} is not in the document");
    let content = response["content"].as_object();
    let content = content.unwrap_or_else(|| panic!("{what} has no content"));
    let mut wrong = Vec::new();
    for form in content.values() {
        match fits(document, &form["schema"], value, "$") {
            Ok(()) => return,
            Err(error) => wrong.push(error),
        }
    }
    panic!("{what}: {wrong:?}\n{value:#}");
}

fn fits(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.strip_prefix('#').unwrap();
        return fits(document, document.pointer(pointer).unwrap(), value, at);
    }
    for all in schema["allOf"].as_array().into_iter().flatten() {
        fits(document, all, value, at)?;
    }
    for word in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[word].as_array() {
            let fit = choices
                .iter()
                .filter(|one| fits(document, one, value, at).is_ok());
            match fit.count() {
                0 => return Err(format!("{at} is none of {word}")),
                1 => {}
                _ if word == "anyOf" => {}
                count => return Err(format!("{at} is {count} of oneOf")),
            }
        }
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        return Err(format!("{at} is {value}, none of {allowed:?}"));
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    if !types.iter().any(|word| is(word, value)) {
        return Err(format!("{at} is {value}, no {types:?}"));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(document, &schema["items"], item, &format!("{at}[{index}]"))?;
    }
    let Some(object) = value.as_object() else {
        return Ok(());
    };
    for required in schema["required"].as_array().into_iter().flatten() {
        let name = required.as_str().unwrap();
        if !object.contains_key(name) {
            return Err(format!("{at} has no {name}"));
        }
    }
    for (name, value) in object {
        let of_any = Some(&schema["additionalProperties"]).filter(|schema| schema.is_object());
        if let Some(schema) = schema["properties"].get(name).or(of_any) {
            fits(document, schema, value, &format!("{at}.{name}"))?;
        }
    }
    Ok(())
}

fn is(word: &str, value: &Value) -> bool {
    match word {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("a type `{other}`"),
    }
}
