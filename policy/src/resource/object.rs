//! The envelope all kinds share: `apiVersion`, `kind`, `metadata`, and what identifies an object.

use std::sync::Arc;

use super::{KINDS, KindInfo, NameRule, Scope, Spec};
use crate::{
    decode::{Context, Fields, Value, one_of, shorten},
    diagnostic::{Diagnostic, Severity},
    labels::Labels,
    names,
    pool::Pools,
    snapshot::{AdapterCatalog, ObjectRef},
    yaml::{self, Document, Kind, Node, Position},
};

/// Namespace of an object that does not say one.
pub const DEFAULT_NAMESPACE: &str = "default";

/// `"true"` on a rule: report what it denies, do not deny it.
pub const AUDIT_ANNOTATION: &str = "weft.mesh/audit";

const AUDITED_KINDS: [&str; 2] = ["NetworkPolicy", "TrafficTarget"];

/// An object that was understood.
#[derive(Debug)]
pub struct Object {
    pub id: Arc<ObjectRef>,
    pub location: Location,
    pub spec: Spec,
    /// The YAML document as written.
    pub text: Box<str>,
    pub labels: Labels,
    pub annotations: Labels,
}

/// Where an object is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub file: Arc<str>,
    /// 1-based, of the document's first field.
    pub line: u32,
    /// 1-based, in characters.
    pub column: u32,
}

/// Identifies an object. The group is part of it: a TCPRoute of SMI is not one of Gateway API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub group: &'static str,
    /// The object's own.
    pub id: Arc<ObjectRef>,
}

/// What could be told about a document that is not known to be any object: which object it may have been.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub kind: Option<&'static str>,
    pub name: Option<String>,
}

/// One document of a file.
#[derive(Debug)]
pub(crate) enum Parsed {
    Good(Key, Object),
    /// Refused, but it says which object it is.
    Refused(Key, Position),
    Unidentified(Facts),
    /// Of a kind that is none of ours, nor near one: it cannot have been an object of ours.
    Foreign,
}

#[derive(Debug)]
pub(crate) struct ParsedFile {
    /// `None`: the file as a whole cannot be read.
    pub documents: Option<Vec<Parsed>>,
    pub diagnostics: Vec<Diagnostic>,
    /// As it was given, and what this file's objects added to it.
    pub pools: Pools,
}

/// What a kind's decoder is given: the document without its envelope.
pub(crate) struct Body<'b, 'a> {
    pub id: &'b ObjectRef,
    /// `v1alpha3` of `access.smi-spec.io/v1alpha3`.
    pub version: &'b str,
    /// Fields beside the envelope's.
    pub root: &'b mut Fields<'a>,
}

/// Reads all documents of a file.
pub(crate) fn parse_file(
    path: &str,
    bytes: &[u8],
    adapters: Option<&'static dyn AdapterCatalog>,
    pools: Pools,
) -> ParsedFile {
    let cx = Context::new(path, adapters, pools);
    let documents = match yaml::parse(bytes) {
        Ok(documents) => Some(
            documents
                .into_iter()
                .map(|document| parse_document(&cx, document))
                .collect(),
        ),
        Err(problem) => {
            cx.problem(problem);
            None
        }
    };
    let (diagnostics, pools) = cx.finish();
    ParsedFile {
        documents,
        diagnostics,
        pools,
    }
}

fn parse_document(cx: &Context, document: Document) -> Parsed {
    cx.set_object(None);
    let root = &document.root;
    let at = root.at;
    let errors_before = cx.errors();
    let envelope = read_envelope(cx, root);
    let Ok(Envelope {
        info,
        key,
        version,
        labels,
        annotations,
        mut fields,
    }) = envelope
    else {
        document.problems.into_iter().for_each(|problem| cx.problem(problem));
        return match is_foreign(root) {
            true => Parsed::Foreign,
            false => Parsed::Unidentified(facts(root)),
        };
    };
    document.problems.into_iter().for_each(|problem| cx.problem(problem));
    let spec = (info.decode)(&mut Body {
        id: &key.id,
        version,
        root: &mut fields,
    });
    fields.finish();
    match spec {
        Some(spec) if cx.errors() == errors_before => {
            let location = Location {
                file: cx.file.clone(),
                line: at.line,
                column: at.column,
            };
            let id = key.id.clone();
            let object = Object {
                id,
                location,
                spec,
                text: document.text.into_boxed_str(),
                labels,
                annotations,
            };
            Parsed::Good(key, object)
        }
        _ => Parsed::Refused(key, at),
    }
}

struct Envelope<'a> {
    info: &'static KindInfo,
    key: Key,
    /// `v1alpha3` of `access.smi-spec.io/v1alpha3`.
    version: &'a str,
    labels: Labels,
    annotations: Labels,
    fields: Fields<'a>,
}

/// It has been said why the document cannot be told to be any object.
struct Unidentified;

fn read_envelope<'a>(cx: &'a Context, root: &'a Node) -> Result<Envelope<'a>, Unidentified> {
    let mut fields = Value {
        cx,
        node: root,
        path: String::new(),
    }
    .fields()
    .ok_or(Unidentified)?;
    let api_version = fields
        .required("apiVersion")
        .and_then(|value| Some((value.text()?, value)));
    let kind = fields.required("kind").and_then(|value| Some((value.text()?, value)));
    let metadata = fields.required("metadata").and_then(Value::fields);
    fields.tolerate(&["status"]);
    let ((api_version, api_version_value), (kind, kind_value)) = api_version.zip(kind).ok_or(Unidentified)?;
    let info = find_kind(api_version, &api_version_value, kind, &kind_value).ok_or(Unidentified)?;

    let mut metadata = metadata.ok_or(Unidentified)?;
    let name = metadata.required("name").and_then(|value| match info.name {
        NameRule::Label => value.dns_label(),
        NameRule::Subdomain => value.dns_subdomain(),
    });
    let namespace_value = metadata.optional("namespace");
    let namespace = match &namespace_value {
        Some(value) => Some(value.dns_label().ok_or(Unidentified)?),
        None => None,
    };
    let namespace = match info.scope {
        Scope::Namespaced => Some(namespace.unwrap_or(DEFAULT_NAMESPACE)),
        Scope::Either => namespace,
        Scope::Cluster => None,
    };
    let id = Arc::new(ObjectRef {
        kind: info.kind.into(),
        namespace: namespace.map(|namespace| cx.shared_text(namespace)),
        name: name.ok_or(Unidentified)?.to_owned(),
    });
    cx.set_object(Some(id.clone()));
    if let (Scope::Cluster, Some(value)) = (info.scope, &namespace_value) {
        value.error(format!("a {} belongs to no namespace", info.kind), "remove the line");
    }
    let labels = metadata.optional("labels").and_then(|v| v.labels()).unwrap_or_default();
    let annotations = match metadata.optional("annotations") {
        Some(value) => {
            let found = value.labels().unwrap_or_default();
            check_audit(&value, &found, info);
            found
        }
        None => Labels::default(),
    };
    // What an API server adds.
    metadata.tolerate(&[
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "ownerReferences",
        "finalizers",
        "selfLink",
        "generateName",
    ]);
    metadata.finish();
    let key = Key { group: info.group, id };
    Ok(Envelope {
        info,
        key,
        version: api_version.rsplit('/').next().unwrap_or_default(),
        labels,
        annotations,
        fields,
    })
}

/// A misspelt wish to audit would enforce.
fn check_audit(value: &Value<'_>, annotations: &Labels, info: &KindInfo) {
    let Some(wish) = annotations.get(AUDIT_ANNOTATION) else {
        return;
    };
    if !matches!(wish, "true" | "false") {
        let reason = format!("{AUDIT_ANNOTATION} is `{}`", shorten(wish));
        value.error(reason, "write \"true\" or \"false\"");
    } else if !AUDITED_KINDS.contains(&info.kind) {
        value.warn(
            format!("{AUDIT_ANNOTATION} has no effect on a {}", info.kind),
            format!(
                "known on {}; for a namespace write `enforcement: audit` into its MeshConfig",
                AUDITED_KINDS.join(" and ")
            ),
        );
    }
}

/// The kind that is meant; else says which known ones are near.
fn find_kind(
    api_version: &str,
    api_version_value: &Value<'_>,
    kind: &str,
    kind_value: &Value<'_>,
) -> Option<&'static KindInfo> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let of_kind: Vec<&&KindInfo> = KINDS.iter().filter(|info| info.kind == kind).collect();
    if let Some(info) = of_kind.iter().find(|info| info.group == group) {
        if info.versions.contains(&version) {
            return Some(info);
        }
        let known: Vec<String> = info.versions.iter().map(|v| join(group, v)).collect();
        api_version_value.error(
            format!("{kind} has no version `{}` here", shorten(api_version)),
            format!("known: {}", known.join(", ")),
        );
        return None;
    }
    if let Some(info) = of_kind.first() {
        let reason = format!("there is no {kind} in `{}`", shorten(api_version));
        api_version_value.error(reason, format!("write `apiVersion: {}`", info.newest()));
        return None;
    }
    let kinds: Vec<&str> = KINDS.iter().map(|info| info.kind).collect();
    let reason = format!("unknown kind `{}` of `{}`", shorten(kind), shorten(api_version));
    let instead = match names::nearest(kind, kinds.iter().copied()) {
        Some(near) => {
            let newest = KINDS
                .iter()
                .find(|info| info.kind == near)
                .map(|info| info.newest())
                .unwrap_or_default();
            format!("did you mean `{near}` of `{newest}`?")
        }
        None => one_of(&kinds, kind),
    };
    kind_value.error(reason, instead);
    None
}

fn join(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

fn is_foreign(root: &Node) -> bool {
    let kind = root.entry("kind").and_then(|entry| entry.value.as_text());
    kind.is_some_and(|kind| !kind.is_empty() && names::nearest(kind, KINDS.iter().map(|info| info.kind)).is_none())
}

/// What a document that cannot be identified says about itself all the same.
fn facts(root: &Node) -> Facts {
    let kind = root.entry("kind").and_then(|entry| entry.value.as_text());
    let name = root.entry("metadata").and_then(|entry| entry.value.entry("name"));
    Facts {
        kind: kind
            .and_then(|kind| KINDS.iter().find(|info| info.kind == kind))
            .map(|info| info.kind),
        name: name
            .filter(|entry| entry.value.kind() == Kind::Text)
            .and_then(|entry| entry.value.as_text())
            .filter(|name| names::is_dns_subdomain(name))
            .map(str::to_owned),
    }
}

// === impl Body ===

impl<'b, 'a> Body<'b, 'a> {
    pub fn namespace(&self) -> &'b str {
        self.id.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
    }

    /// Whether `version` is one of these.
    pub fn is_version(&self, versions: &[&str]) -> bool {
        versions.contains(&self.version)
    }

    /// The fields of `spec`, which must be there.
    pub fn spec(&mut self) -> Option<Fields<'a>> {
        self.root.required("spec").and_then(Value::fields)
    }

    /// The fields of `spec`, if it is there.
    pub fn optional_spec(&mut self) -> Option<Fields<'a>> {
        self.root.optional("spec").and_then(Value::fields)
    }
}

// === impl Facts ===

impl Facts {
    /// Whether the document may have been meant to be this object.
    pub fn fit(&self, key: &Key) -> bool {
        self.kind.is_none_or(|kind| kind == key.id.kind) && self.name.as_ref().is_none_or(|name| *name == key.id.name)
    }
}

// === impl Object ===

impl Object {
    /// Namespace; empty for objects of the whole mesh.
    pub fn namespace(&self) -> &str {
        self.id.namespace.as_deref().unwrap_or_default()
    }

    /// Whether it is the same text at the same place: then it is the same object.
    pub(crate) fn is_written_as(&self, other: &Self) -> bool {
        self.location == other.location && self.text == other.text
    }

    /// Whether it is annotated to be audited.
    pub(crate) fn is_audited(&self) -> bool {
        self.annotations
            .get(AUDIT_ANNOTATION)
            .is_some_and(|wish| wish == "true")
    }

    /// A message about a field of this object.
    pub(crate) fn diagnostic<T>(
        &self,
        severity: Severity,
        at: &crate::decode::Located<T>,
        reason: String,
        instead: Option<String>,
    ) -> Diagnostic {
        Diagnostic {
            severity,
            file: self.location.file.to_string(),
            line: at.line,
            column: at.column,
            object: Some((*self.id).clone()),
            field: at.field.clone(),
            reason,
            instead,
        }
    }
}
