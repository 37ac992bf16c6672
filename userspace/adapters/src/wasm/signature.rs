//! Signatures that modules have verified: RSA (PKCS #1 v1.5, up to 4096 bits) and ECDSA on P-256 and P-384, over SHA-2; and made:
//! ECDSA.
//!
//! With the crates that verify tokens (`builtin/jwt`). Source of keys and forms: Envoy, `source/common/crypto/utility_impl.cc`.

use p256::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use rsa::{
    Pkcs1v15Sign, RsaPublicKey,
    pkcs8::{DecodePrivateKey, DecodePublicKey, SecretDocument},
};
use sha2::{Digest, Sha256, Sha384, Sha512, digest::const_oid::AssociatedOid};

/// Whose signatures are verified.
pub(super) enum PublicKey {
    Rsa(RsaPublicKey),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

/// Who signs. Not RSA: how long this crate takes for that tells of the key (RUSTSEC-2023-0071), and clients would see how long.
pub(super) enum PrivateKey {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
}

/// Why a signature is none, or there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignatureError {
    #[error("hash function `{name}` is not supported, expected `sha256`, `sha384` or `sha512`")]
    Hash { name: String },
    #[error("the key did not sign this text with that hash function")]
    Unsigned,
    #[error("the key does not sign with that hash function")]
    Sign,
}

/// A key as one in DER, of which a PEM text is the other form; `None`: it is none.
pub(super) fn der_of(pem: &str) -> Option<SecretDocument> {
    SecretDocument::from_pem(pem).ok().map(|(_, der)| der)
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
    pub fn verify(&self, hash: &str, signature: &[u8], text: &[u8]) -> Result<(), SignatureError> {
        let fits = match &*hash.to_ascii_lowercase() {
            "sha256" => self.fits::<Sha256>(signature, text),
            "sha384" => self.fits::<Sha384>(signature, text),
            "sha512" => self.fits::<Sha512>(signature, text),
            _ => return Err(unknown(hash)),
        };
        fits.then_some(()).ok_or(SignatureError::Unsigned)
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

// === impl PrivateKey ===

impl PrivateKey {
    /// A key as PKCS #8 in DER; `None`: it is none, or of another kind.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let key = p256::ecdsa::SigningKey::from_pkcs8_der(der).map(Self::P256);
        key.or_else(|_| p384::ecdsa::SigningKey::from_pkcs8_der(der).map(Self::P384))
            .ok()
    }

    /// A signature of `text`, in DER: the same for the same text. Costs as much as one that is verified.
    pub fn sign(&self, hash: &str, text: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let hash = match &*hash.to_ascii_lowercase() {
            "sha256" => Sha256::digest(text).to_vec(),
            "sha384" => Sha384::digest(text).to_vec(),
            "sha512" => Sha512::digest(text).to_vec(),
            _ => return Err(unknown(hash)),
        };
        let signed = match self {
            Self::P256(key) => key
                .sign_prehash(&hash)
                .map(|signature: p256::ecdsa::DerSignature| signature.as_bytes().to_vec()),
            Self::P384(key) => key
                .sign_prehash(&hash)
                .map(|signature: p384::ecdsa::DerSignature| signature.as_bytes().to_vec()),
        };
        signed.map_err(|_| SignatureError::Sign)
    }
}

fn unknown(hash: &str) -> SignatureError {
    SignatureError::Hash { name: hash.to_owned() }
}
