//! One file a hook, thin: read the context, ask `capture` or `verdict`, write maps.

mod connect;
mod getpeer;
mod getsockopt;
mod setsockopt;
mod sk_lookup;
mod sk_msg;
mod skb;
mod sock_create;
mod sockops;
mod tc;
mod udp;
