//! DNS server of the mesh.
