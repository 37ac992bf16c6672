//! The keys of a JSON Web Key Set, each with the algorithms it may be used for.

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// Most keys of a set that are looked at. Issuers have two or three; a token without `kid` may have to be tried with each.
pub const MAX_KEYS: usize = 64;

/// Shortest RSA modulus in bytes: 2048 bits.
//= RFC 7518, section 3.3
//# A key of size 2048 bits or larger MUST be used with these algorithms.
const MIN_RSA_MODULUS: usize = 256;

#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

#[derive(Debug)]
pub(super) struct Key {
    id: Option<String>,
    /// What it may be used for: by its kind and its `alg`, never by what a token says.
    algorithms: Vec<Algorithm>,
    pub key: DecodingKey,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

// === impl Keys ===

impl Keys {
    /// Keys that we cannot use (other kinds, for encryption, too short) are left out, as RFC 7517 section 5 asks.
    pub fn parse(json: &[u8], accepted: &[Algorithm]) -> Result<Self, String> {
        let set: Set = serde_json::from_slice(json).map_err(|error| format!("no key set: {error}"))?;
        let keys: Vec<Key> = set
            .keys
            .into_iter()
            .take(MAX_KEYS)
            .filter_map(|value| Key::new(&serde_json::from_value(value).ok()?, accepted))
            .collect();
        if keys.is_empty() {
            return Err("no usable key".to_owned());
        }
        Ok(Self(keys))
    }

    /// The keys that may have signed a token with this head.
    pub fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(move |key| {
            let named = match (id, &key.id) {
                (Some(wanted), Some(id)) => wanted == id,
                _ => true,
            };
            named && key.algorithms.contains(&algorithm)
        })
    }
}

// === impl Key ===

impl Key {
    fn new(jwk: &Jwk, accepted: &[Algorithm]) -> Option<Self> {
        if matches!(&jwk.common.public_key_use, Some(purpose) if *purpose != PublicKeyUse::Signature) {
            return None;
        }
        let kind: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) if rsa.n.trim_end_matches('=').len() * 3 / 4 >= MIN_RSA_MODULUS => &[
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
            AlgorithmParameters::OctetKey(_) => &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512],
            _ => return None,
        };
        let own: Option<Algorithm> = match jwk.common.key_algorithm {
            None => None,
            Some(named) => Some(named.to_string().parse().ok()?),
        };
        let algorithms: Vec<Algorithm> = kind
            .iter()
            .copied()
            .filter(|algorithm| accepted.contains(algorithm) && own.is_none_or(|own| own == *algorithm))
            .collect();
        Some(Self {
            id: jwk.common.key_id.clone(),
            key: DecodingKey::from_jwk(jwk).ok().filter(|_| !algorithms.is_empty())?,
            algorithms,
        })
    }
}
