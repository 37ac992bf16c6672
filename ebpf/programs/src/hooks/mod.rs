//! One file a hook, thin: read the context, ask `capture` or `verdict`, write maps.

mod connect;
mod getpeer;
mod sk_msg;
mod sock_create;
mod sockops;
mod udp;
