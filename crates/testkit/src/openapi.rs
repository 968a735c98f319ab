//! Requests and responses against an OpenAPI document: operations, validation, and sample values.
//!
//! Only the part of JSON Schema that utoipa generates for hvsock's types is understood; a keyword
//! that would make a value invalid and is unknown here panics, so that no check is skipped.

use serde_json::{Map, Number, Value, json};

/// The keywords that [`Document::validate`] checks, and those that say nothing about validity.
const KEYWORDS: &[&str] = &[
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "default",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "minItems",
    "minimum",
    "oneOf",
    "properties",
    "propertyNames",
    "required",
    "type",
];

/// The sample of every string that has no format. A valid name of a service and of a partition.
pub const WORD: &str = "web";
/// The sample of every GUID.
pub const GUID: &str = "0b2f1f0e-0000-4000-8000-000000000001";

/// An OpenAPI document.
#[derive(Debug)]
pub struct Document(Value);

/// One operation of a document: a method of a path.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    document: &'a Document,
    /// The method in lower case.
    pub method: &'a str,
    /// The path, with its parameters in braces.
    pub path: &'a str,
    value: &'a Value,
}

impl Document {
    /// Parses a document.
    ///
    /// # Panics
    /// If it is not JSON.
    pub fn parse(text: &str) -> Self {
        Self(serde_json::from_str(text).expect("the document is JSON"))
    }

    /// The document as it was parsed.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// All operations.
    pub fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        let paths = self.0["paths"].as_object().into_iter().flatten();
        paths.flat_map(move |(path, methods)| {
            let methods = methods.as_object().into_iter().flatten();
            methods.map(move |(method, value)| Operation {
                document: self,
                method,
                path,
                value,
            })
        })
    }

    /// The operation of a request by its method and path without query.
    pub fn find(&self, method: &str, path: &str) -> Option<Operation<'_>> {
        self.operations().find(|operation| {
            let mut template = operation.path.split('/');
            let mut segments = path.split('/');
            operation.method.eq_ignore_ascii_case(method)
                && loop {
                    match (template.next(), segments.next()) {
                        (None, None) => break true,
                        (Some(name), Some(segment)) if name.starts_with('{') => {
                            if segment.is_empty() {
                                break false;
                            }
                        }
                        (one, other) if one == other => {}
                        _ => break false,
                    }
                }
        })
    }

    /// Whether `value` matches `schema`, and if not, where it does not.
    ///
    /// # Errors
    /// The first mismatch, as one sentence.
    ///
    /// # Panics
    /// If the schema has a keyword that is not understood.
    pub fn validate(&self, schema: &Value, value: &Value) -> Result<(), String> {
        self.fits(schema, value, "$")
    }

    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let Some(reference) = schema["$ref"].as_str() else {
            return schema;
        };
        let target = reference
            .strip_prefix('#')
            .and_then(|to| self.0.pointer(to));
        target.unwrap_or_else(|| panic!("{reference} is not in the document"))
    }

    fn fits(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolve(schema);
        for keyword in schema.as_object().into_iter().flat_map(Map::keys) {
            assert!(
                KEYWORDS.contains(&keyword.as_str()),
                "unknown: {keyword} at {at}"
            );
        }
        for all in list(schema, "allOf") {
            self.fits(all, value, at)?;
        }
        for word in ["oneOf", "anyOf"] {
            let choices = list(schema, word);
            let fit = choices
                .iter()
                .filter(|one| self.fits(one, value, at).is_ok());
            match (choices.len(), fit.count()) {
                (0, _) | (_, 1) => {}
                (_, 0) => return Err(format!("{at} is none of {word}")),
                _ if word == "anyOf" => {}
                (_, count) => return Err(format!("{at} is {count} of oneOf")),
            }
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            return Err(format!("{at} is {value}, none of {allowed:?}"));
        }
        let types = types(schema);
        if !types.is_empty() && !types.iter().any(|word| is(word, value)) {
            return Err(format!("{at} is {value}, no {types:?}"));
        }
        if let (Some(number), Some(least)) = (value.as_f64(), schema["minimum"].as_f64())
            && number < least
        {
            return Err(format!("{at} is {number}, below {least}"));
        }
        if let Some(items) = value.as_array() {
            let count = items.len() as u64;
            let least = schema["minItems"].as_u64().unwrap_or(0);
            let most = schema["maxItems"].as_u64().unwrap_or(u64::MAX);
            if !(least..=most).contains(&count) {
                return Err(format!("{at} has {count} items"));
            }
            for (index, item) in items.iter().enumerate() {
                self.fits(&schema["items"], item, &format!("{at}[{index}]"))?;
            }
        }
        let Some(object) = value.as_object() else {
            return Ok(());
        };
        for required in list(schema, "required") {
            let name = required.as_str().unwrap_or_default();
            if !object.contains_key(name) {
                return Err(format!("{at} has no {name}"));
            }
        }
        for (name, value) in object {
            let more = &schema["additionalProperties"];
            match schema["properties"].get(name) {
                Some(schema) => self.fits(schema, value, &format!("{at}.{name}"))?,
                None if more.is_object() => self.fits(more, value, &format!("{at}.{name}"))?,
                None if more == &json!(false) => return Err(format!("{at} has {name}")),
                None => {}
            }
        }
        Ok(())
    }

    /// Values that match `schema` and together have every property, every variant and every value
    /// of an enumeration. The first one has only what is required.
    pub fn samples(&self, schema: &Value) -> Vec<Value> {
        let samples = self.unchecked_samples(schema);
        for sample in &samples {
            if let Err(error) = self.validate(schema, sample) {
                panic!("a bad sample: {error}\n{sample:#}");
            }
        }
        samples
    }

    fn unchecked_samples(&self, schema: &Value) -> Vec<Value> {
        let schema = self.resolve(schema);
        if let Some(values) = schema["enum"].as_array() {
            return values.clone();
        }
        let mut samples = Vec::new();
        for word in ["oneOf", "anyOf"] {
            for choice in list(schema, word) {
                samples.extend(self.unchecked_samples(choice));
            }
        }
        let parts: Vec<_> = list(schema, "allOf")
            .iter()
            .map(|part| self.unchecked_samples(part))
            .collect();
        samples.extend(combined(&parts).map(|parts| {
            let objects = parts.filter_map(Value::as_object);
            let members = objects
                .flatten()
                .map(|(name, value)| (name.clone(), value.clone()));
            Value::Object(members.collect())
        }));
        if samples.is_empty() {
            // Null comes last: the first type says more.
            samples.extend(
                types(schema)
                    .iter()
                    .flat_map(|word| self.of_type(schema, word)),
            );
        }
        samples
    }

    fn of_type(&self, schema: &Value, word: &str) -> Vec<Value> {
        match word {
            "object" => self.objects(schema),
            "array" => {
                let items = self.unchecked_samples(&schema["items"]);
                let least = usize::try_from(schema["minItems"].as_u64().unwrap_or(0));
                let count = items.len().max(least.unwrap_or(0));
                vec![items.iter().cycle().take(count).cloned().collect()]
            }
            "string" if schema["format"] == "uuid" => vec![GUID.into()],
            "string" => vec![WORD.into()],
            "boolean" => vec![true.into(), false.into()],
            "integer" => vec![schema["minimum"].as_u64().unwrap_or(0).max(3).into()],
            "number" => vec![Number::from_f64(1.5).into()],
            "null" => vec![Value::Null],
            other => panic!("a type `{other}`"),
        }
    }

    fn objects(&self, schema: &Value) -> Vec<Value> {
        let mut members: Vec<(&str, Vec<Value>)> = Vec::new();
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            members.push((name, self.unchecked_samples(schema)));
        }
        if schema["additionalProperties"].is_object() {
            members.push((
                WORD,
                self.unchecked_samples(&schema["additionalProperties"]),
            ));
        }
        let required = list(schema, "required");
        let least = members
            .iter()
            .filter(|(name, _)| required.contains(&json!(name)));
        let least: Map<_, _> = least
            .map(|(name, values)| ((*name).to_owned(), values[0].clone()))
            .collect();
        let (names, values): (Vec<_>, Vec<_>) = members.into_iter().unzip();
        let mut samples = vec![Value::Object(least)];
        samples.extend(combined(&values).map(|values| {
            let members = names
                .iter()
                .map(|name| (*name).to_owned())
                .zip(values.cloned());
            Value::Object(members.collect())
        }));
        samples
    }
}

/// Combinations in which each value of each list occurs at least once.
fn combined(lists: &[Vec<Value>]) -> impl Iterator<Item = impl Iterator<Item = &Value>> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).map(move |turn| lists.iter().map(move |list| &list[turn % list.len()]))
}

fn list<'a>(schema: &'a Value, word: &str) -> &'a [Value] {
    schema[word].as_array().map_or(&[], Vec::as_slice)
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
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

impl<'a> Operation<'a> {
    /// The names of the parameters in the query.
    pub fn query_names(&self) -> impl Iterator<Item = &'a str> {
        self.query()
            .filter_map(|parameter| parameter["name"].as_str())
    }

    fn query(&self) -> impl Iterator<Item = &'a Value> {
        let parameters = list(self.value, "parameters").iter();
        parameters.filter(|parameter| parameter["in"] == "query")
    }

    /// Panics unless the unescaped parameters of a query are those of the operation.
    pub fn check_query(&self, query: &[(String, String)]) {
        let what = (self.method, self.path);
        for parameter in self.query() {
            let given = query.iter().any(|(name, _)| parameter["name"] == **name);
            let required = parameter["required"] == true;
            assert!(given || !required, "{what:?} without {}", parameter["name"]);
        }
        for (name, text) in query {
            let parameter = self.query().find(|one| one["name"] == **name);
            let parameter = parameter.unwrap_or_else(|| panic!("{what:?} has no {name}"));
            let schema = &parameter["schema"];
            let value = match types(self.document.resolve(schema)).first() {
                Some(&"string") => Value::from(text.as_str()),
                _ => serde_json::from_str(text).unwrap_or(Value::Null),
            };
            let fits = self.document.validate(schema, &value);
            fits.unwrap_or_else(|error| panic!("{what:?} {name}: {error}"));
        }
    }

    /// The content types and schemas of a request's body.
    pub fn request(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        contents(&self.value["requestBody"])
    }

    /// The statuses of all responses.
    pub fn statuses(&self) -> impl Iterator<Item = u16> {
        let responses = self.value["responses"].as_object().into_iter().flatten();
        responses.map(|(status, _)| status.parse().expect("a status is a number"))
    }

    /// The content types and schemas of a response.
    pub fn response(&self, status: u16) -> impl Iterator<Item = (&'a str, &'a Value)> {
        contents(&self.value["responses"][status.to_string()])
    }

    /// Panics unless the operation has a response with this status that `value` matches.
    pub fn check_response(&self, status: u16, value: &Value) {
        let what = format!("{} {} {status}", self.method, self.path);
        let mut wrong = Vec::new();
        for (_, schema) in self.response(status) {
            match self.document.validate(schema, value) {
                Ok(()) => return,
                Err(error) => wrong.push(error),
            }
        }
        assert!(!wrong.is_empty(), "{what} is not in the document");
        panic!("{what}: {wrong:?}\n{value:#}");
    }
}

fn contents(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let content = value["content"].as_object().into_iter().flatten();
    content.map(|(name, form)| (name.as_str(), &form["schema"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        Document(json!({
            "paths": { "/v1/things/{thing}": { "get": {
                "parameters": [
                    { "name": "all", "in": "query", "required": true, "schema": { "type": "boolean" } },
                ],
                "responses": { "200": { "content": { "application/json": {
                    "schema": { "$ref": "#/components/schemas/Thing" },
                } } } },
            } } },
            "components": { "schemas": {
                "Thing": {
                    "type": "object",
                    "required": ["state"],
                    "properties": {
                        "state": { "type": "string", "enum": ["on", "off"] },
                        "load": { "type": "array", "items": { "type": "number" },
                            "minItems": 3, "maxItems": 3 },
                        "cid": { "type": ["integer", "null"], "minimum": 3 },
                    },
                    "additionalProperties": false,
                },
            } },
        }))
    }

    #[test]
    fn a_request_finds_its_operation_by_method_and_template() {
        let document = document();
        assert!(document.find("GET", "/v1/things/web").is_some());
        for (method, path) in [
            ("POST", "/v1/things/web"),
            ("GET", "/v1/things/"),
            ("GET", "/v1/things"),
            ("GET", "/v1/things/web/more"),
        ] {
            assert!(document.find(method, path).is_none(), "{method} {path}");
        }
    }

    #[test]
    fn a_value_is_refused_for_each_keyword() {
        let document = document();
        let schema = &document.value()["components"]["schemas"]["Thing"];
        let fits = |value| document.validate(schema, &value);
        fits(json!({ "state": "on", "load": [0, 1, 2.5], "cid": null })).unwrap();
        for value in [
            json!([]),
            json!({}),
            json!({ "state": "broken" }),
            json!({ "state": "on", "load": [1, 2] }),
            json!({ "state": "on", "load": [1, 2, "3"] }),
            json!({ "state": "on", "cid": 2 }),
            json!({ "state": "on", "cid": 3.5 }),
            json!({ "state": "on", "other": 1 }),
        ] {
            assert!(fits(value.clone()).is_err(), "{value}");
        }
    }

    #[test]
    fn samples_have_every_property_and_every_value_of_an_enumeration() {
        let document = document();
        let samples = document.samples(&json!({ "$ref": "#/components/schemas/Thing" }));
        let load = json!([1.5, 1.5, 1.5]);
        let want = [
            json!({ "state": "on" }),
            json!({ "state": "on", "load": load, "cid": 3 }),
            json!({ "state": "off", "load": load, "cid": null }),
        ];
        assert_eq!(samples, want);
    }

    #[test]
    #[should_panic(expected = "without \"all\"")]
    fn a_query_without_a_required_parameter_is_detected() {
        let document = document();
        document
            .find("get", "/v1/things/web")
            .unwrap()
            .check_query(&[]);
    }

    #[test]
    #[should_panic(expected = "unknown: pattern")]
    fn a_keyword_that_is_not_understood_is_no_silent_pass() {
        let _ = document().validate(&json!({ "type": "string", "pattern": "a" }), &json!("b"));
    }
}
