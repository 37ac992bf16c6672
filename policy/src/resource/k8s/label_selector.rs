//! `metav1.LabelSelector`: which labels something must have.

use std::collections::{BTreeMap, BTreeSet};

use crate::{decode::Value, labels::Labels};

/// All requirements must hold; without any, everything is selected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    label: String,
    operator: Operator,
    /// Of `In` and `NotIn`.
    values: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    In,
    /// Holds for what does not have the label, too.
    NotIn,
    Exists,
    DoesNotExist,
}

const OPERATORS: &[(&str, Operator)] = &[
    ("In", Operator::In),
    ("NotIn", Operator::NotIn),
    ("Exists", Operator::Exists),
    ("DoesNotExist", Operator::DoesNotExist),
];

// === impl LabelSelector ===

impl LabelSelector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.label);
            match requirement.operator {
                Operator::In => value.is_some_and(|value| requirement.values.contains(value)),
                Operator::NotIn => value.is_none_or(|value| !requirement.values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    pub(crate) fn decode(value: Value<'_>) -> Option<Self> {
        let mut fields = value.fields()?;
        let labels = match fields.optional("matchLabels") {
            Some(labels) => labels.string_map(),
            None => Some(BTreeMap::new()),
        };
        let expressions = match fields.optional("matchExpressions") {
            Some(list) => list.items().and_then(|items| decode_all(items, decode_expression)),
            None => Some(Vec::new()),
        };
        fields.finish();
        let exact = labels?.into_iter().map(|(label, value)| Requirement {
            label,
            operator: Operator::In,
            values: BTreeSet::from([value]),
        });
        Some(Self {
            requirements: exact.chain(expressions?).collect(),
        })
    }
}

fn decode_expression(value: Value<'_>) -> Option<Requirement> {
    let at = value.clone();
    let mut fields = value.fields()?;
    let label = fields.required("key").and_then(|value| value.text().map(str::to_owned));
    let operator = fields.required("operator").and_then(|value| value.choice(OPERATORS));
    let values = match fields.optional("values") {
        Some(list) => list
            .items()
            .and_then(|items| decode_all(items, |item| item.text().map(str::to_owned))),
        None => Some(Vec::new()),
    };
    fields.finish();
    let (operator, values) = (operator?, values?);
    match operator {
        Operator::In | Operator::NotIn if values.is_empty() => {
            at.error(
                "this operator compares with `values`, and there are none",
                "add `values: [...]`",
            );
            return None;
        }
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
            at.error(
                "this operator asks for the label only",
                "remove `values`, or write `operator: In`",
            );
            return None;
        }
        _ => {}
    }
    Some(Requirement {
        label: label?,
        operator,
        values: values.into_iter().collect(),
    })
}

/// Decodes every item, so that all that is wrong is said; `None` if one of them is wrong.
pub(super) fn decode_all<'a, T>(items: Vec<Value<'a>>, decode: impl Fn(Value<'a>) -> Option<T>) -> Option<Vec<T>> {
    let count = items.len();
    let decoded: Vec<T> = items.into_iter().filter_map(decode).collect();
    (decoded.len() == count).then_some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(operator: Operator, values: &[&str], expect: [bool; 3]) {
        let selector = LabelSelector {
            requirements: vec![Requirement {
                label: "tier".into(),
                operator,
                values: values.iter().map(|value| (*value).to_owned()).collect(),
            }],
        };
        let labels = |tier: &str| Labels::from(BTreeMap::from([("tier".to_owned(), tier.to_owned())]));
        let found = [labels("a"), labels("b"), Labels::default()].map(|labels| selector.matches(&labels));
        assert_eq!(found, expect, "{operator:?} {values:?}");
    }

    #[test]
    fn operators_mean_what_kubernetes_says() {
        check(Operator::In, &["a"], [true, false, false]);
        check(Operator::NotIn, &["a"], [false, true, true]);
        check(Operator::Exists, &[], [true, true, false]);
        check(Operator::DoesNotExist, &[], [false, false, true]);
        assert!(LabelSelector::default().matches(&Labels::default()));
    }
}
