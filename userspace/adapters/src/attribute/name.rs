//! The fixed slot table.

macro_rules! attributes {
    ($($(#[$words:meta])* $variant:ident = $name:literal,)+) => {
        /// One attribute of the slot table. The words of a variant say what its value is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Attribute {
            $($(#[$words])* $variant,)+
        }

        impl Attribute {
            /// Every attribute, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name in rules and expressions.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The attribute of a name, for the loader of a configuration; `None`: there is no such attribute.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

attributes! {
    /// Namespace of the caller.
    SourceNamespace = "source.namespace",
    /// Service the calling workload belongs to; absent where it belongs to none.
    SourceService = "source.service",
    /// `NAMESPACE/ACCOUNT` of the caller.
    SourcePrincipal = "source.principal",
    /// Address of the caller, where known.
    SourceIp = "source.ip",
    /// Namespace of the called service.
    DestinationNamespace = "destination.namespace",
    /// Name of the called service; absent outside the mesh.
    DestinationService = "destination.service",
    /// `NAMESPACE/ACCOUNT` of the picked endpoint; absent until one is picked.
    DestinationPrincipal = "destination.principal",
    /// Original destination address.
    DestinationIp = "destination.ip",
    /// Original destination port.
    DestinationPort = "destination.port",
    /// HTTP method.
    RequestMethod = "request.method",
    /// Path as received, query included.
    RequestPath = "request.path",
    /// Path without query.
    RequestUrlPath = "request.url_path",
    /// `Host` or `:authority`.
    RequestHost = "request.host",
    /// All headers; ask the value for one by its lower-case name.
    RequestHeaders = "request.headers",
    /// `tcp`, `udp`, `http` or `grpc`.
    ContextProtocol = "context.protocol",
    /// Whether mutual TLS authenticated both sides.
    ConnectionMtls = "connection.mtls",
    /// SNI that the client asked for.
    ConnectionRequestedServerName = "connection.requested_server_name",
}
