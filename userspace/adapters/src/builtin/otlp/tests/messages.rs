//! Bytes made by Google's Python library from OpenTelemetry's own `.proto` files (PyPI `opentelemetry-proto` 1.45.2).

use super::{
    super::proto::{
        AnyValue, Data, Histogram, HistogramPoint, Metric, NumberPoint, PartialSuccess, Status, Sum, Value,
    },
    *,
};

fn resource() -> Option<Resource> {
    Some(Resource {
        attributes: vec![KeyValue::text("service.name", "weft")],
    })
}

fn scope() -> Option<Scope> {
    Some(Scope {
        name: "weft".to_owned(),
        version: "1".to_owned(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn spans_are_those_of_the_protos() {
    let message = ExportTraces {
        resource_spans: vec![ResourceSpans {
            resource: resource(),
            scope_spans: vec![ScopeSpans {
                scope: scope(),
                spans: vec![Span {
                    trace_id: vec![1; 16],
                    span_id: vec![2; 8],
                    parent_span_id: vec![3; 8],
                    name: "GET".to_owned(),
                    kind: proto::CLIENT,
                    start_time_unix_nano: 5,
                    end_time_unix_nano: 6,
                    attributes: vec![KeyValue {
                        key: "a".to_owned(),
                        value: Some(AnyValue {
                            value: Some(Value::Int(7)),
                        }),
                    }],
                    status: Some(Status {
                        message: "no".to_owned(),
                        code: proto::ERROR,
                    }),
                    flags: 1,
                }],
            }],
        }],
    };
    assert_eq!(
        hex(&message.encode_to_vec()),
        "0a7f0a180a160a0c736572766963652e6e616d6512060a047765667412630a090a047765667412013112560a100101010101010101010101010101\
         0101120802020202020202022208030303030303030\
         32a0347455430033905000000000000004106000000000000004a070a0161120218077a0612026e6f1802850101000000"
    );
}

#[test]
fn metrics_are_those_of_the_protos() {
    let histogram = Histogram {
        data_points: vec![HistogramPoint {
            start_time_unix_nano: 1,
            time_unix_nano: 2,
            count: 3,
            sum: Some(4.5),
            bucket_counts: vec![1, 2],
            explicit_bounds: vec![0.5],
            attributes: vec![KeyValue::text("b", "c")],
        }],
        aggregation_temporality: proto::DELTA,
    };
    let sum = Sum {
        data_points: vec![NumberPoint {
            start_time_unix_nano: 1,
            time_unix_nano: 2,
            as_int: Some(9),
            attributes: Vec::new(),
        }],
        aggregation_temporality: proto::DELTA,
        is_monotonic: true,
    };
    let metric = |name: &str, description: &str, unit: &str, data| Metric {
        name: name.to_owned(),
        description: description.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
    };
    let message = ExportMetricsRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: resource(),
            scope_metrics: vec![ScopeMetrics {
                scope: scope(),
                metrics: vec![
                    metric("h", "d", "s", Data::Histogram(histogram)),
                    metric("s", "", "By", Data::Sum(sum)),
                ],
            }],
        }],
    };
    assert_eq!(
        hex(&message.encode_to_vec()),
        "0aaf010a180a160a0c736572766963652e6e616d6512060a04776566741292010a090a047765667412013112590a01681201641a01734a4e0a4a11\
         01000000000000001902000000000000002103000000000000002900000000000012403210010000000000000002000000000000003a0800000000\
         0000e03f4a080a016212030a01631001122a0a01731a0242793a210a1b110100000000000000190200000000000000310900000000000000100118\
         01"
    );
}

#[test]
fn an_answer_says_what_was_rejected() {
    // The same bytes for both signals.
    let bytes = [0x0a, 0x05, 0x08, 0x02, 0x12, 0x01, 0x78];
    let expect = PartialSuccess {
        rejected: 2,
        error_message: "x".to_owned(),
    };
    assert_eq!(
        ExportResponse::decode(&bytes[..]).unwrap().partial_success,
        Some(expect)
    );
}
