//! The document that policies see as `input`: the attributes by their names. What a request does not have is not there.

use serde_json::{Map, Value, json};

use crate::attribute::{Attribute, Bag, RequestView, joined};

pub(super) fn input(bag: &Bag<'_>) -> Value {
    let mut input = Map::new();
    for attribute in Attribute::ALL {
        let value = match (attribute, bag.get(*attribute)) {
            (_, None) | (Attribute::RequestHeaders, _) => continue,
            (_, Some(crate::attribute::Value::Int(number))) => json!(number),
            (_, Some(crate::attribute::Value::Bool(truth))) => json!(truth),
            (_, Some(other)) => json!(other.to_string()),
        };
        put(&mut input, attribute.name(), value);
    }
    if let Some(request) = &bag.request {
        put(
            &mut input,
            Attribute::RequestHeaders.name(),
            json!(joined(request.headers, |_| true)),
        );
        put(&mut input, "request.query_params", query(request));
    }
    Value::Object(input)
}

/// `a.b` is `b` in the object `a`.
fn put(input: &mut Map<String, Value>, name: &str, value: Value) {
    let (object, field) = name.split_once('.').unwrap_or(("context", name));
    if let Value::Object(object) = input.entry(object).or_insert_with(|| json!({})) {
        object.insert(field.to_owned(), value);
    }
}

/// Lists of values by name, decoded.
fn query(request: &RequestView<'_>) -> Value {
    let mut params = Map::new();
    let query = request.path.split_once('?').map_or("", |(_, query)| query);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if let Value::Array(values) = params.entry(name).or_insert_with(|| json!([])) {
            values.push(json!(value));
        }
    }
    Value::Object(params)
}
