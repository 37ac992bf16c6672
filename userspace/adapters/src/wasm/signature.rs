//! Signatures that modules have verified: RSA (PKCS #1 v1.5, up to 4096 bits) and ECDSA on P-256 and P-384, over SHA-2.
//!
//! With the crates that verify tokens (`builtin/jwt`). Source of keys and forms: Envoy, `source/common/crypto/utility_impl.cc`.

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::{Pkcs1v15Sign, RsaPublicKey, pkcs8::DecodePublicKey};
use sha2::{Digest, Sha256, Sha384, Sha512, digest::const_oid::AssociatedOid};

/// Whose signatures are verified.
pub(super) enum PublicKey {
    Rsa(RsaPublicKey),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

/// Why a signature is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unverified {
    #[error("hash function `{name}` is not supported, expected `sha256`, `sha384` or `sha512`")]
    Hash { name: String },
    #[error("the key did not sign this text with that hash function")]
    Signature,
}

// === impl PublicKey ===

impl PublicKey {
    /// A key as `SubjectPublicKeyInfo` in DER; `None`: it is none, or of another kind.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let key = RsaPublicKey::from_public_key_der(der).map(Self::Rsa);
        let key = key.or_else(|_| p256::ecdsa::VerifyingKey::from_public_key_der(der).map(Self::P256));
        let key = key.or_else(|_| p384::ecdsa::VerifyingKey::from_public_key_der(der).map(Self::P384));
        key.ok()
    }

    /// Whether `signature` (of ECDSA in DER) is one of `text`. Costs a hash over it, and a millisecond or two.
    pub fn verify(&self, hash: &str, signature: &[u8], text: &[u8]) -> Result<(), Unverified> {
        let fits = match &*hash.to_ascii_lowercase() {
            "sha256" => self.fits::<Sha256>(signature, text),
            "sha384" => self.fits::<Sha384>(signature, text),
            "sha512" => self.fits::<Sha512>(signature, text),
            _ => return Err(Unverified::Hash { name: hash.to_owned() }),
        };
        fits.then_some(()).ok_or(Unverified::Signature)
    }

    fn fits<D: Digest + AssociatedOid>(&self, signature: &[u8], text: &[u8]) -> bool {
        let hash = D::digest(text);
        match self {
            Self::Rsa(key) => key.verify(Pkcs1v15Sign::new::<D>(), &hash, signature).is_ok(),
            Self::P256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(&hash, &signature).is_ok()),
            Self::P384(key) => p384::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(&hash, &signature).is_ok()),
        }
    }
}
