//! The callbacks that a module has, looked up once.

use wasmtime::{Instance, Store, TypedFunc, WasmParams, WasmResults};

use super::{abi::AbiVersion, error::WasmError, host::Host};

/// A callback that a module need not have.
type Callback<P, R> = Option<TypedFunc<P, R>>;

/// Contexts come first; answers are truth values or actions (0: go on, else: wait).
pub(super) struct Exports {
    pub context_create: Callback<(u32, u32), ()>,
    pub vm_start: Callback<(u32, u32), u32>,
    pub configure: Callback<(u32, u32), u32>,
    pub done: Callback<u32, u32>,
    pub log: Callback<u32, ()>,
    pub delete: Callback<u32, ()>,
    pub tick: Callback<u32, ()>,
    pub queue_ready: Callback<(u32, u32), ()>,
    pub new_connection: Callback<u32, u32>,
    /// Context, bytes, whether that is the end.
    pub downstream_data: Callback<(u32, u32, u32), u32>,
    pub upstream_data: Callback<(u32, u32, u32), u32>,
    /// Context, who closed.
    pub downstream_close: Callback<(u32, u32), ()>,
    pub upstream_close: Callback<(u32, u32), ()>,
    pub request_headers: HeadersCallback,
    pub request_body: Callback<(u32, u32, u32), u32>,
    pub request_trailers: Callback<(u32, u32), u32>,
    pub response_headers: HeadersCallback,
    pub response_body: Callback<(u32, u32, u32), u32>,
    pub response_trailers: Callback<(u32, u32), u32>,
    /// Context, call, headers, bytes, trailers.
    pub http_call_response: Callback<(u32, u32, u32, u32, u32), ()>,
    /// Context, call, headers.
    pub grpc_initial: Callback<(u32, u32, u32), ()>,
    /// Context, call, bytes.
    pub grpc_message: Callback<(u32, u32, u32), ()>,
    /// Context, call, trailers.
    pub grpc_trailing: Callback<(u32, u32, u32), ()>,
    /// Context, call, status.
    pub grpc_close: Callback<(u32, u32, u32), ()>,
}

/// Headers came: ABI 0.1.0 does not say whether that is the end.
pub(super) enum HeadersCallback {
    None,
    /// Context, headers.
    Two(TypedFunc<(u32, u32), u32>),
    /// Context, headers, whether that is the end.
    Three(TypedFunc<(u32, u32, u32), u32>),
}

// === impl Exports ===

impl Exports {
    /// # Errors
    /// A callback has another signature than the ABI says.
    pub fn of(instance: &Instance, store: &mut Store<Host>, abi: AbiVersion) -> Result<Self, WasmError> {
        let mut find = Finder { instance, store };
        Ok(Self {
            context_create: find.callback("proxy_on_context_create")?,
            vm_start: find.callback("proxy_on_vm_start")?,
            configure: find.callback("proxy_on_configure")?,
            done: find.callback("proxy_on_done")?,
            log: find.callback("proxy_on_log")?,
            delete: find.callback("proxy_on_delete")?,
            tick: find.callback("proxy_on_tick")?,
            queue_ready: find.callback("proxy_on_queue_ready")?,
            new_connection: find.callback("proxy_on_new_connection")?,
            downstream_data: find.callback("proxy_on_downstream_data")?,
            upstream_data: find.callback("proxy_on_upstream_data")?,
            downstream_close: find.callback("proxy_on_downstream_connection_close")?,
            upstream_close: find.callback("proxy_on_upstream_connection_close")?,
            request_headers: find.headers("proxy_on_request_headers", abi)?,
            request_body: find.callback("proxy_on_request_body")?,
            request_trailers: find.callback("proxy_on_request_trailers")?,
            response_headers: find.headers("proxy_on_response_headers", abi)?,
            response_body: find.callback("proxy_on_response_body")?,
            response_trailers: find.callback("proxy_on_response_trailers")?,
            http_call_response: find.callback("proxy_on_http_call_response")?,
            grpc_initial: find.callback("proxy_on_grpc_receive_initial_metadata")?,
            grpc_message: find.callback("proxy_on_grpc_receive")?,
            grpc_trailing: find.callback("proxy_on_grpc_receive_trailing_metadata")?,
            grpc_close: find.callback("proxy_on_grpc_close")?,
        })
    }
}

/// Looks up exports of an instance.
pub(super) struct Finder<'a> {
    pub instance: &'a Instance,
    pub store: &'a mut Store<Host>,
}

// === impl Finder ===

impl Finder<'_> {
    pub fn callback<P: WasmParams, R: WasmResults>(&mut self, name: &'static str) -> Result<Callback<P, R>, WasmError> {
        let Some(function) = self.instance.get_func(&mut *self.store, name) else {
            return Ok(None);
        };
        match function.typed(&*self.store) {
            Ok(typed) => Ok(Some(typed)),
            Err(error) => Err(WasmError::Export {
                name,
                reason: format!("{error:#}"),
            }),
        }
    }

    fn headers(&mut self, name: &'static str, abi: AbiVersion) -> Result<HeadersCallback, WasmError> {
        if abi == AbiVersion::V0_1_0 {
            // Its SDKs came to add the end without a new number.
            if let Ok(callback) = self.callback(name) {
                return Ok(callback.map_or(HeadersCallback::None, HeadersCallback::Two));
            }
        }
        let callback = self.callback(name)?;
        Ok(callback.map_or(HeadersCallback::None, HeadersCallback::Three))
    }
}
