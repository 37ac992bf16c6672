//! Numbers of the ABI. Source: proxy-wasm/spec, `abi-versions/v0.2.1/README.md`.

/// Version that a module was built for, told by the name of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AbiVersion {
    V0_1_0,
    V0_2_0,
    V0_2_1,
    /// Higress's: 0.2.1 with calls and a callback of its own, without which modules run here.
    V0_2_100,
}

/// What a host call answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Status {
    Ok = 0,
    NotFound = 1,
    BadArgument = 2,
    SerializationFailure = 3,
    ParseFailure = 4,
    InvalidMemoryAccess = 6,
    Empty = 7,
    CasMismatch = 8,
    InternalFailure = 10,
}

/// Map of headers that a call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MapKind {
    RequestHeaders,
    RequestTrailers,
    ResponseHeaders,
    ResponseTrailers,
    GrpcInitial,
    GrpcTrailing,
    CallHeaders,
    CallTrailers,
}

/// Buffer that a call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BufferKind {
    RequestBody,
    ResponseBody,
    Downstream,
    Upstream,
    CallBody,
    GrpcMessage,
    VmConfiguration,
    PluginConfiguration,
    ForeignArguments,
}

/// Stream that `proxy_continue_stream` and `proxy_close_stream` mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    Request,
    Response,
    Downstream,
    Upstream,
}

// === impl AbiVersion ===

impl AbiVersion {
    /// Newest first.
    pub(super) const ALL: [Self; 4] = [Self::V0_2_100, Self::V0_2_1, Self::V0_2_0, Self::V0_1_0];

    /// Export that marks it.
    pub(super) fn marker(self) -> &'static str {
        match self {
            Self::V0_1_0 => "proxy_abi_version_0_1_0",
            Self::V0_2_0 => "proxy_abi_version_0_2_0",
            Self::V0_2_1 => "proxy_abi_version_0_2_1",
            Self::V0_2_100 => "proxy_abi_version_0_2_100",
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_2_1 => "0.2.1",
            Self::V0_2_100 => "0.2.100",
        }
    }
}

// === impl MapKind ===

impl MapKind {
    pub(super) fn from_abi(number: u32) -> Result<Self, Status> {
        Ok(match number {
            0 => Self::RequestHeaders,
            1 => Self::RequestTrailers,
            2 => Self::ResponseHeaders,
            3 => Self::ResponseTrailers,
            4 => Self::GrpcInitial,
            5 => Self::GrpcTrailing,
            6 => Self::CallHeaders,
            7 => Self::CallTrailers,
            _ => return Err(Status::BadArgument),
        })
    }
}

// === impl BufferKind ===

impl BufferKind {
    pub(super) fn from_abi(number: u32) -> Result<Self, Status> {
        Ok(match number {
            0 => Self::RequestBody,
            1 => Self::ResponseBody,
            2 => Self::Downstream,
            3 => Self::Upstream,
            4 => Self::CallBody,
            5 => Self::GrpcMessage,
            6 => Self::VmConfiguration,
            7 => Self::PluginConfiguration,
            8 => Self::ForeignArguments,
            _ => return Err(Status::BadArgument),
        })
    }
}

// === impl StreamKind ===

impl StreamKind {
    pub(super) fn from_abi(number: u32) -> Result<Self, Status> {
        Ok(match number {
            0 => Self::Request,
            1 => Self::Response,
            2 => Self::Downstream,
            3 => Self::Upstream,
            _ => return Err(Status::BadArgument),
        })
    }
}
