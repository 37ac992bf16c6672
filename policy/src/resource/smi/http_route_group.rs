//! HTTPRouteGroup: named matches of method, path and headers.
//!
//! Up to v1alpha2 `matches` stands beside `metadata`, later below `spec`. `headers` is a map in the specification and a
//! list of maps in the published CRD: both are read.

use std::collections::BTreeSet;

use crate::{
    decode::{Value, one_of, shorten},
    resource::{Body, KindInfo, NameRule, Scope, Spec},
    snapshot::{HttpMatch, PathPattern},
    yaml::Data,
};

pub(crate) static HTTP_ROUTE_GROUP: KindInfo = KindInfo {
    group: super::SPECS,
    versions: &["v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"],
    kind: "HTTPRouteGroup",
    scope: Scope::Namespaced,
    name: NameRule::Subdomain,
    decode,
};

/// Methods of the specification; `*` is every method, those that are not listed included.
const METHODS: &[&str] = &[
    "*", "GET", "HEAD", "PUT", "POST", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

#[derive(Debug)]
pub struct HttpRouteGroupSpec {
    pub matches: Vec<HttpMatch>,
}

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    let list = if body.is_version(&["v1alpha1", "v1alpha2"]) {
        body.root.required("matches")
    } else {
        let mut spec = body.spec()?;
        let list = spec.required("matches");
        spec.finish();
        list
    }?;
    let items = list.items()?;
    if items.is_empty() {
        list.warn("a group without matches matches no request", "add a match");
    }
    let with_headers = !body.is_version(&["v1alpha1"]);
    let mut names = BTreeSet::new();
    let mut matches = Vec::new();
    for item in &items {
        if let Some(found) = decode_match(item.clone(), with_headers) {
            if !names.insert(found.name.clone()) {
                item.error(
                    format!("two matches are named `{}`", shorten(&found.name)),
                    "give each its own name",
                );
            }
            matches.push(found);
        }
    }
    (matches.len() == items.len()).then_some(Spec::HttpRouteGroup(HttpRouteGroupSpec { matches }))
}

fn decode_match(item: Value<'_>, with_headers: bool) -> Option<HttpMatch> {
    let mut fields = item.fields()?;
    let name = fields.required("name").and_then(|value| value.text());
    let methods = match fields.optional("methods") {
        Some(list) => decode_methods(&list),
        None => Some(Vec::new()),
    };
    let path = match fields.optional("pathRegex") {
        Some(value) => {
            let regex = value.regex_anchored_at_start();
            if regex.is_some() {
                lint_path(&value);
            }
            regex.map(|regex| Some(PathPattern::new(regex)))
        }
        None => Some(None),
    };
    let headers = match if with_headers { fields.optional("headers") } else { None } {
        Some(value) => decode_headers(&value),
        None => Some(Vec::new()),
    };
    fields.finish();
    Some(HttpMatch {
        name: name?.to_owned(),
        methods: methods?,
        path: path?,
        headers: headers?,
    })
}

/// Empty where every method matches.
fn decode_methods(list: &Value<'_>) -> Option<Vec<String>> {
    let mut methods = Vec::new();
    let mut every = false;
    for item in list.items()? {
        match item.text()? {
            "*" => every = true,
            method if METHODS.contains(&method) => methods.push(method.to_owned()),
            other => {
                item.error(format!("unknown method `{}`", shorten(other)), one_of(METHODS, other));
                return None;
            }
        }
    }
    if every {
        methods.clear();
    }
    Some(methods)
}

fn decode_headers(value: &Value<'_>) -> Option<Vec<(String, regex::Regex)>> {
    let maps = match &value.node.data {
        Data::Sequence(_) => value.items()?,
        _ => vec![value.clone()],
    };
    let mut headers = Vec::new();
    let mut whole = true;
    for map in maps {
        let Data::Mapping(entries) = &map.node.data else {
            map.error(
                format!("expected a map, found {}", map.node.kind().describe()),
                "write `name: regex`",
            );
            return None;
        };
        for entry in entries {
            let path = format!("{}.{}", map.path, shorten(&entry.key));
            let field = Value {
                cx: map.cx,
                node: &entry.value,
                path,
            };
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:".contains(&b);
            if entry.key.is_empty() || !entry.key.bytes().all(token) {
                field.error("this is no name of an HTTP header", "use letters, digits and `-`");
                whole = false;
            }
            match field.regex_anchored_at_start() {
                Some(regex) => headers.push((entry.key.to_ascii_lowercase(), regex)),
                None => whole = false,
            }
        }
    }
    whole.then_some(headers)
}

/// The path is anchored at its start only, which surprises: `/public` also matches `/publication`.
fn lint_path(value: &Value<'_>) {
    let Some(pattern) = value.node.as_text() else { return };
    let mut back = pattern.chars().rev();
    let open_ended = back
        .next()
        .is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '_'));
    if open_ended && back.next() != Some('\\') {
        let pattern = shorten(pattern);
        value.warn(
            format!("anchored at its start only: `{pattern}x` matches too"),
            format!("write `{pattern}$`, `{pattern}(/.*)?$` or, if that is meant, `{pattern}.*`"),
        );
    }
    if pattern.starts_with(|c: char| c.is_alphanumeric()) {
        value.warn(
            "a path starts with `/`: this matches none",
            format!("write `/{}`", shorten(pattern)),
        );
    }
}
