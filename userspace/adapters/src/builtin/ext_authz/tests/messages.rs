use prost::Message;

use super::*;

/// Bytes made by Google's Python library from Envoy's own `.proto` files (PyPI `xds-protos` 1.85.0).
#[test]
fn the_messages_are_those_of_envoys_protos() {
    let peer = |address: &str, port, service: &str, principal: &str| {
        Some(Peer {
            address: Some(Address {
                socket_address: Some(SocketAddress {
                    address: address.to_owned(),
                    port_value: port,
                }),
            }),
            service: service.to_owned(),
            principal: principal.to_owned(),
        })
    };
    let request = CheckRequest {
        attributes: Some(AttributeContext {
            source: peer("10.0.0.7", None, "front", "spiffe://cluster.local/ns/default/sa/client"),
            destination: peer("240.240.0.1", Some(80), "", ""),
            request: Some(Request {
                time: Some(Timestamp { seconds: 5, nanos: 6 }),
                http: Some(HttpRequest {
                    id: "7".to_owned(),
                    method: "GET".to_owned(),
                    headers: map(&[("x-a", "1")]),
                    path: "/a?b".to_owned(),
                    host: "web".to_owned(),
                    scheme: "http".to_owned(),
                    size: -1,
                }),
            }),
            context_extensions: map(&[("k", "v")]),
            tls_session: Some(TlsSession {
                sni: "web.example".to_owned(),
            }),
        }),
    };
    let bytes = "0aa8010a420a0c0a0a120831302e302e302e37120566726f6e74222b7370696666653a2f2f636c75737465722e6c6f63616c2f6e732f64656\
                 661756c742f73612f636c69656e7412130a110a0f120b3234302e3234302e302e31185022360a0408051006122e0a013712034745541a080a\
                 03782d6112013122042f613f622a0377656232046874747048ffffffffffffffffff0152060a016b120176620d0a0b7765622e6578616d706\
                 c65";
    assert_eq!(hex(&request.encode_to_vec()), bytes);

    for (bytes, expect) in [
        (
            "0a001a32120e0a080a03782d6112013112020801120a0a080a03782d621a01322a03782d63320c0a080a03782d641201341803420171",
            CheckResponse {
                status: Some(Status::default()),
                http_response: Some(HttpResponse::Ok(OkHttpResponse {
                    headers: vec![
                        option("x-a", "1", Some(true), 0),
                        HeaderValueOption {
                            header: Some(proto::HeaderValue {
                                key: "x-b".to_owned(),
                                value: String::new(),
                                raw_value: b"2".to_vec(),
                            }),
                            append: None,
                            append_action: 0,
                        },
                    ],
                    headers_to_remove: vec!["x-c".to_owned()],
                    response_headers_to_add: vec![option("x-d", "4", None, AppendAction::OverwriteIfExists as i32)],
                })),
            },
        ),
        (
            "0a06080712026e6f12240a0308ad0312120a100a0b72657472792d61667465721201331a09736c6f7720646f776e",
            CheckResponse {
                status: status(7, "no"),
                http_response: Some(HttpResponse::Denied(DeniedHttpResponse {
                    status: Some(HttpStatus { code: 429 }),
                    headers: vec![option("retry-after", "3", None, 0)],
                    body: "slow down".to_owned(),
                })),
            },
        ),
        (
            "0a02080d2a050a0308f403",
            CheckResponse {
                status: status(13, ""),
                http_response: Some(HttpResponse::Error(DeniedHttpResponse {
                    status: Some(HttpStatus { code: 500 }),
                    ..DeniedHttpResponse::default()
                })),
            },
        ),
    ] {
        assert_eq!(CheckResponse::decode(&unhex(bytes)[..]).unwrap(), expect);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}
