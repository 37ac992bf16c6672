//! What the service is told: attributes in Envoy's words.

use std::{collections::HashMap, net::IpAddr, time::SystemTime};

use super::{
    config::Config,
    proto::{
        Address, AttributeContext, CheckRequest, HttpRequest, Peer, Request, SocketAddress, Timestamp, TlsSession,
    },
};
use crate::attribute::{Bag, Principal, RequestView, joined};

pub(super) fn request(bag: &Bag<'_>, config: &Config, now: SystemTime) -> CheckRequest {
    let source = Peer {
        address: bag.source.ip.map(|ip| address(ip, None)),
        service: bag.source.service.unwrap_or_default().to_owned(),
        principal: spiffe(&config.trust_domain, bag.source.principal()),
    };
    let destination = Peer {
        address: Some(address(bag.destination.ip, Some(bag.destination.port))),
        service: bag.destination.service.unwrap_or_default().to_owned(),
        principal: bag
            .destination
            .principal()
            .map(|principal| spiffe(&config.trust_domain, principal))
            .unwrap_or_default(),
    };
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    };
    let sni = bag.connection.requested_server_name;
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(source),
            destination: Some(destination),
            request: bag.request.map(|request| Request {
                time: Some(time),
                http: Some(http(&request, config)),
            }),
            context_extensions: config.context_extensions.clone(),
            tls_session: sni.map(|sni| TlsSession { sni: sni.to_owned() }),
        }),
    }
}

fn http(request: &RequestView<'_>, config: &Config) -> HttpRequest {
    let size = request.headers.get("content-length").and_then(|size| size.parse().ok());
    HttpRequest {
        id: request.headers.get("x-request-id").unwrap_or_default().to_owned(),
        method: request.method.to_owned(),
        headers: headers(request, config),
        path: request.path.to_owned(),
        host: request.host.to_owned(),
        scheme: "http".to_owned(),
        size: size.unwrap_or(-1),
    }
}

/// See [`joined`]. `:method`, `:path` and `:authority` are among them, also of HTTP/1.
fn headers(request: &RequestView<'_>, config: &Config) -> HashMap<String, String> {
    let allowed = |name: &str| match &config.allowed_headers {
        None => true,
        Some(names) => names.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)),
    };
    let mut headers = joined(request.headers, allowed);
    for (name, value) in [
        (":method", request.method),
        (":path", request.path),
        (":authority", request.host),
    ] {
        headers.insert(name.to_owned(), value.to_owned());
    }
    headers
}

fn address(ip: IpAddr, port: Option<u16>) -> Address {
    Address {
        socket_address: Some(SocketAddress {
            address: ip.to_string(),
            port_value: port.map(u32::from),
        }),
    }
}

fn spiffe(trust_domain: &str, principal: Principal<'_>) -> String {
    format!(
        "spiffe://{trust_domain}/ns/{}/sa/{}",
        principal.namespace, principal.account
    )
}
