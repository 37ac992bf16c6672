use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
        .collect()
}

/// Everything, as `NAME: VALUE`, with `trace`'s own ids by their names.
fn written(trace: &Trace, mut headers: HeaderMap) -> Vec<String> {
    trace.write(&mut headers);
    let mut lines: Vec<String> = headers
        .iter()
        .map(|(name, value)| {
            let value = value.to_str().unwrap();
            let value = value.replace(&trace.span_id.to_string(), "OWN");
            format!("{name}: {}", value.replace(TRACE, "TRACE").replace(SPAN, "SPAN"))
        })
        .collect();
    lines.sort();
    lines
}

/// All shares: what the sender has decided does not depend on it.
fn decided(pairs: &[(&str, &str)]) -> Trace {
    let all = Trace::under(&headers(pairs), 1 << 31);
    let none = Trace::under(&headers(pairs), 0);
    assert_eq!(all.sampled, none.sampled, "{pairs:?}");
    assert_ne!(all.span_id, none.span_id);
    all
}

#[test]
fn a_trace_goes_on_with_a_span_of_its_own() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let b3 = format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90");
    for (pairs, sampled, expect) in [
        (
            vec![("traceparent", parent.as_str()), ("tracestate", "a=1")],
            true,
            vec!["traceparent: 00-TRACE-OWN-01", "tracestate: a=1"],
        ),
        (
            vec![("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02")],
            false,
            vec!["traceparent: 00-TRACE-OWN-00"],
        ),
        // A later version.
        (
            vec![(
                "traceparent",
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what.it-may-be",
            )],
            true,
            vec!["traceparent: 00-TRACE-OWN-01"],
        ),
        (vec![("b3", b3.as_str())], true, vec!["b3: TRACE-OWN-1-SPAN"]),
        (
            vec![("b3", "4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-0")],
            false,
            vec!["b3: TRACE-OWN-0-SPAN"],
        ),
        (
            vec![("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "0")],
            false,
            vec![
                "x-b3-parentspanid: SPAN",
                "x-b3-sampled: 0",
                "x-b3-spanid: OWN",
                "x-b3-traceid: TRACE",
            ],
        ),
        (
            vec![("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")],
            true,
            vec![
                "x-b3-flags: 1",
                "x-b3-parentspanid: SPAN",
                "x-b3-spanid: OWN",
                "x-b3-traceid: TRACE",
            ],
        ),
        // W3C is looked at first, and all that is there tells the same afterwards.
        (
            vec![("traceparent", parent.as_str()), ("b3", "1-2-0")],
            true,
            vec!["b3: TRACE-OWN-1-SPAN", "traceparent: 00-TRACE-OWN-01"],
        ),
    ] {
        let trace = decided(&pairs);
        assert_eq!(trace.trace_id.to_string(), TRACE, "{pairs:?}");
        assert_eq!(trace.parent_id.unwrap().to_string(), SPAN, "{pairs:?}");
        assert_eq!(trace.sampled, sampled, "{pairs:?}");
        assert_eq!(written(&trace, headers(&pairs)), expect, "{pairs:?}");
    }
}

#[test]
fn a_short_trace_id_is_one_with_zeros_before() {
    let trace = decided(&[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-1")]);
    assert_eq!(trace.trace_id, TraceId(0xa3ce_929d_0e0e_4736));
}

#[test]
fn what_is_malformed_begins_a_new_trace() {
    for pairs in [
        &[("traceparent", "")][..],
        &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7")],
        &[(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        )],
        &[("traceparent", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
        &[("traceparent", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01")],
        &[("traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01")],
        &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01")],
        &[("traceparent", "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
        &[
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-01"),
        ],
        &[("b3", "4bf92f35-00f067aa0ba902b7-1")],
        &[("x-b3-traceid", TRACE)],
    ] {
        for (share, sampled) in [(1 << 31, true), (0, false)] {
            let trace = Trace::under(&headers(pairs), share);
            assert_ne!(trace.trace_id.to_string(), TRACE, "{pairs:?}");
            assert_eq!((trace.parent_id, trace.sampled), (None, sampled), "{pairs:?}");
            assert!(trace.trace_id.0 != 0 && trace.span_id.0 != 0);
        }
    }
}

#[test]
fn state_of_another_trace_does_not_go_on() {
    let trace = Trace::under(&HeaderMap::new(), 0);
    let own = trace.trace_id.to_string();
    let lines = written(&trace, headers(&[("traceparent", "broken"), ("tracestate", "a=1")]));
    assert_eq!(lines, [format!("traceparent: 00-{own}-OWN-00")]);
}

#[test]
fn a_sender_that_decides_without_a_trace_is_obeyed() {
    for (value, sampled) in [("0", false), ("1", true), ("d", true)] {
        let pairs = [("b3", value)];
        let trace = decided(&pairs);
        assert_eq!((trace.sampled, trace.parent_id), (sampled, None));
        let own = trace.trace_id.to_string();
        assert_eq!(
            written(&trace, headers(&pairs)),
            [format!("b3: {own}-OWN-{}", u8::from(sampled))]
        );
    }
    assert!(!decided(&[("x-b3-sampled", "false")]).sampled);
}

#[test]
fn about_the_share_is_sampled() {
    let sampled = (0..10_000)
        .filter(|_| Trace::under(&HeaderMap::new(), 1 << 29).sampled)
        .count();
    // A quarter; 43 is the standard deviation.
    assert!((2_200..2_800).contains(&sampled), "{sampled}");
}

#[test]
fn ids_are_hexadecimal_in_json_and_come_back() {
    let trace = decided(&[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]);
    let json = serde_json::to_string(&trace).unwrap();
    assert!(
        json.starts_with(&format!("{{\"trace_id\":\"{TRACE}\",\"span_id\":")),
        "{json}"
    );
    assert_eq!(serde_json::from_str::<Trace>(&json).unwrap(), trace);
    assert!(serde_json::from_str::<TraceId>("\"0\"").is_err());
}
