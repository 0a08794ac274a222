//! What a token says, and whether to believe it. Pure: keys and the time are arguments.
//!
//! Who signed it is asked of [`super::jws`]; every claim is decided here, so that each refusal has a word of its own in the log. A
//! token is bound to the key for which a certificate is asked: its nonce is the key's digest,
//! so that whoever gets hold of it can do nothing with it.

use super::jws::{Keys, TOKEN_BYTES_MAX, signed};
use crate::config::ProviderConfig;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use falaj_core::{
    id::{Digest, Role, SpiffeId},
    roles::Roles,
    time::Timestamp,
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// How far a provider's clock and ours may be apart.
pub(super) const SKEW_S: i64 = 60;
/// A token that was made longer ago than this is too old, whatever it says of its end.
const AGE_MAX_S: i64 = 24 * 3_600;
/// Hexadecimal digits of a subject's digest in a name.
const DIGITS: usize = 32;
/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too long.
    #[error("the token has {0} bytes, {TOKEN_BYTES_MAX} are allowed")]
    Long(usize),
    /// It is no JWT, or lacks a claim.
    #[error("the token is no signed JWT that can be read: {0}")]
    Unreadable(&'static str),
    /// Signed in a way that nobody may.
    #[error("the token is signed by an algorithm that is not RS256, ES256 or EdDSA")]
    Algorithm,
    /// By a key that the provider does not have, or that is for something else.
    #[error("the provider has no such key for signatures")]
    UnknownKey,
    /// Not by that key.
    #[error("the token's signature is wrong")]
    Signature,
    /// By somebody else.
    #[error("the token is of another issuer")]
    Issuer,
    /// For somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// Over.
    #[error("the token has expired: sign in again")]
    Expired,
    /// Not yet begun, or made in the future.
    #[error("the token is not valid yet: compare this machine's clock with the provider's")]
    Early,
    /// For another key.
    #[error("the token's nonce is not of the key for which a certificate is asked")]
    Nonce,
    /// Nobody, or nobody who can be named.
    #[error("the token names nobody who can be an operator: {0}")]
    Name(&'static str),
    /// Nothing to do here.
    #[error(
        "none of the groups that the token names stands for a role here: the coordinator's operator sets that in `[[oidc.provider]]`"
    )]
    Roles,
}

impl TokenError {
    /// What is wrong, as one stable word for the log.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Long(_) => "token_too_long",
            Self::Unreadable(_) => "unreadable_token",
            Self::Algorithm => "token_algorithm",
            Self::UnknownKey => "token_key_unknown",
            Self::Signature => "token_signature",
            Self::Issuer => "token_issuer",
            Self::Audience => "token_audience",
            Self::Expired => "token_expired",
            Self::Early => "token_not_yet_valid",
            Self::Nonce => "token_nonce",
            Self::Name(_) => "token_name",
            Self::Roles => "token_without_role",
        }
    }
}

/// Whom a token names, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// As certificates name operators.
    pub id: SpiffeId,
    /// What the provider's groups stand for.
    pub roles: Roles,
    /// Until when the token may be shown, in seconds since the Unix epoch.
    pub until: i64,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    iat: i64,
    nbf: Option<i64>,
    azp: Option<String>,
    client_id: Option<String>,
    nonce: Option<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Many(many) => many.iter().any(|one| one == wanted),
        }
    }

    fn is_one(&self) -> bool {
        matches!(self, Self::One(_)) || matches!(self, Self::Many(many) if many.len() == 1)
    }
}

/// The nonce of a token for this public key (Ed25519): its SHA-256, in base64url.
#[must_use]
pub fn nonce_for(key: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(Digest::of(key).as_bytes())
}

/// Whom a token names: it is signed by one of the provider's `keys`, says what it must, and is for the holder of `key`.
///
/// # Errors
/// [`TokenError`].
pub fn holder(
    token: &str,
    (provider, keys): (&ProviderConfig, &Keys),
    (trust_domain, key): (&str, &[u8; 32]),
    now: Timestamp,
) -> Result<Holder, TokenError> {
    let signed = signed(token, keys)?;
    let access = signed.access;
    let claims: Claims =
        serde_json::from_slice(&signed.claims).map_err(|_| TokenError::Unreadable("its claims"))?;
    if claims.iss != provider.issuer {
        return Err(TokenError::Issuer);
    }
    let now = now.as_millis() / 1_000;
    if claims.exp <= now - SKEW_S || claims.iat <= now - AGE_MAX_S {
        return Err(TokenError::Expired);
    }
    if claims.iat > now + SKEW_S || claims.nbf.is_some_and(|from| from > now + SKEW_S) {
        return Err(TokenError::Early);
    }
    let roles =
        if access { of_pipeline(&claims, provider)? } else { of_person(&claims, provider, key)? };
    if roles.is_empty() {
        return Err(TokenError::Roles);
    }
    let id = SpiffeId::new(
        trust_domain,
        &provider.place,
        Role::Operator,
        &name(&claims, provider, access)?,
    );
    let id =
        id.map_err(|_| TokenError::Name("its name is not lower-case letters, digits and `-`"))?;
    Ok(Holder { id, roles, until: claims.exp.min(claims.iat + AGE_MAX_S) })
}

/// The roles of a pipeline, which comes with an access token of its own client.
fn of_pipeline(claims: &Claims, provider: &ProviderConfig) -> Result<Roles, TokenError> {
    let resource = provider.resource.as_deref().ok_or(TokenError::Audience)?;
    if !claims.aud.has(resource) {
        return Err(TokenError::Audience);
    }
    // A person's access token is for other services, and tells nothing of a nonce.
    let client = claims.client_id.as_ref().filter(|client| **client == claims.sub);
    let client = client.ok_or(TokenError::Name("an access token is taken of a client alone"))?;
    Ok(provider.clients.get(client).copied().unwrap_or_default())
}

/// The roles of a person, who comes with an ID token.
fn of_person(
    claims: &Claims,
    provider: &ProviderConfig,
    key: &[u8; 32],
) -> Result<Roles, TokenError> {
    let client = &provider.client_id;
    let by_us = match &claims.azp {
        Some(azp) => azp == client,
        None => claims.aud.is_one(),
    };
    if !claims.aud.has(client) || !by_us {
        return Err(TokenError::Audience);
    }
    match &claims.nonce {
        Some(nonce) if *nonce != nonce_for(key) => return Err(TokenError::Nonce),
        // A device has no browser, and its provider may keep no nonce for it.
        None if !provider.device => return Err(TokenError::Nonce),
        _ => {}
    }
    let groups = match claims.others.get(&provider.groups_claim) {
        Some(Value::Array(groups)) => groups.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(group)) => vec![group.as_str()],
        _ => Vec::new(),
    };
    let of = |group: &str| provider.groups.get(group).copied().unwrap_or_default();
    Ok(groups.into_iter().map(of).fold(Roles::NONE, Roles::and))
}

/// The last part of the identity. It begins with the provider's prefix, with which no certificate of anybody else may begin.
fn name(claims: &Claims, provider: &ProviderConfig, access: bool) -> Result<String, TokenError> {
    if claims.sub.is_empty() || claims.sub.len() > 255 {
        return Err(TokenError::Name("its subject has to have 1 to 255 bytes"));
    }
    let own = match provider.name_claim.as_deref() {
        Some(claim) if !access => {
            let told = claims.others.get(claim).and_then(Value::as_str);
            let told = told.ok_or(TokenError::Name("it lacks the claim in `name_claim`"))?;
            if told.len() == DIGITS && told.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(TokenError::Name("its name looks like a digest"));
            }
            told.to_owned()
        }
        // A subject is one person for ever; of a digest, half is enough to tell people apart.
        _ => {
            let whole = format!("{}\0{}", claims.iss, claims.sub);
            let digest = Digest::of(whole.as_bytes()).to_string();
            digest[..DIGITS].to_owned()
        }
    };
    Ok(format!("{}-{own}", provider.prefix))
}

#[cfg(test)]
mod tests {
    use super::{super::jws::tests::Signer, *};
    use aws_lc_rs::hmac;
    use serde_json::json;

    const NOW: i64 = 1_900_000_000;
    const KEY: [u8; 32] = [7; 32];

    struct World {
        signer: Signer,
        provider: ProviderConfig,
        keys: Keys,
    }

    fn world() -> World {
        let signer = Signer::new();
        let provider = toml::from_str(
            "issuer = \"https://idp.test\"\nca = \"ca.pem\"\nclient_id = \"falaj-cli\"\nplace = \"ae-on/ae-az\"\n\
             resource = \"https://coordinator.test\"\ngroups = { audit = [\"auditor\"] }\nclients = { ci = [\"operator\"] }",
        )
        .expect("a provider");
        let keys = signer.keys();
        World { signer, provider, keys }
    }

    fn person() -> Value {
        json!({
            "iss": "https://idp.test", "sub": "4711", "aud": "falaj-cli", "iat": NOW - 5, "exp": NOW + 300,
            "nonce": nonce_for(&KEY), "groups": ["audit", "everybody"],
        })
    }

    fn pipeline() -> Value {
        json!({
            "iss": "https://idp.test", "sub": "ci", "client_id": "ci", "aud": "https://coordinator.test",
            "iat": NOW - 5, "exp": NOW + 300,
        })
    }

    impl World {
        fn signed(&self, change: impl FnOnce(&mut Value), claims: &Value) -> String {
            let mut head = json!({ "alg": "ES256", "kid": "ES256", "typ": "JWT" });
            change(&mut head);
            self.signer.token(&head, claims)
        }

        fn said(&self, token: &str) -> Result<Holder, &'static str> {
            let now = Timestamp::from_millis(NOW * 1_000);
            holder(token, (&self.provider, &self.keys), ("falaj.test", &KEY), now)
                .map_err(|e| e.reason())
        }
    }

    /// A token without a signature.
    fn unsigned(head: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(head), part(claims))
    }

    #[test]
    fn a_token_names_its_subject_and_the_roles_of_its_groups() {
        let world = world();
        let holder = world.said(&world.signed(|_| {}, &person())).expect("somebody");
        assert_eq!(holder.roles.to_string(), "auditor");
        assert_eq!(holder.until, NOW + 300);
        let name = holder.id.to_string();
        assert!(name.starts_with("spiffe://falaj.test/ae-on/ae-az/operator/sso-"), "{name}");
        let access = |h: &mut Value| h["typ"] = "at+jwt".into();
        let ci = world.said(&world.signed(access, &pipeline())).expect("a pipeline");
        assert_eq!(ci.roles.to_string(), "operator");
        assert_ne!(ci.id, holder.id);
        let mut other = person();
        other["sub"] = "4712".into();
        assert_ne!(world.said(&world.signed(|_| {}, &other)).expect("another").id, holder.id);
    }

    #[test]
    fn what_is_wrong_with_a_token_has_a_word_of_its_own() {
        let world = world();
        let with = |name: &str, value: Value| {
            let mut claims = person();
            if value.is_null() {
                claims.as_object_mut().expect("an object").remove(name);
            } else {
                claims[name] = value;
            }
            world.signed(|_| {}, &claims)
        };
        let good = world.signed(|_| {}, &person());
        let forged = {
            let mut parts: Vec<&str> = good.split('.').collect();
            let other = with("groups", json!(["root"]));
            parts[1] = other.split('.').nth(1).expect("claims");
            parts.join(".")
        };
        let confused = {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let head = part(&json!({ "alg": "HS256", "kid": "ES256" }));
            let message = format!("{head}.{}", part(&person()));
            let key = hmac::Key::new(hmac::HMAC_SHA256, world.signer.point());
            let tag = hmac::sign(&key, message.as_bytes());
            format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
        };
        for (what, token, reason) in [
            ("expired", with("exp", (NOW - 61).into()), "token_expired"),
            ("made long ago", with("iat", (NOW - 90_000).into()), "token_expired"),
            ("made in the future", with("iat", (NOW + 61).into()), "token_not_yet_valid"),
            ("not yet valid", with("nbf", (NOW + 61).into()), "token_not_yet_valid"),
            ("another audience", with("aud", "somebody-else".into()), "token_audience"),
            (
                "several audiences and nobody named",
                with("aud", json!(["falaj-cli", "x"])),
                "token_audience",
            ),
            ("made for somebody else", with("azp", "somebody-else".into()), "token_audience"),
            ("another issuer", with("iss", "https://idp.test.evil".into()), "token_issuer"),
            ("a list of issuers", with("iss", json!(["https://idp.test"])), "unreadable_token"),
            ("no subject", with("sub", Value::Null), "unreadable_token"),
            ("an empty subject", with("sub", "".into()), "token_name"),
            ("no end", with("exp", Value::Null), "unreadable_token"),
            ("another nonce", with("nonce", nonce_for(&[8; 32]).into()), "token_nonce"),
            ("no nonce", with("nonce", Value::Null), "token_nonce"),
            ("no groups", with("groups", Value::Null), "token_without_role"),
            (
                "groups of no role",
                with("groups", json!(["everybody", "auditor"])),
                "token_without_role",
            ),
            (
                "an unknown key",
                world.signed(|h| h["kid"] = "other".into(), &person()),
                "token_key_unknown",
            ),
            ("no key", world.signed(|h| h["kid"] = Value::Null, &person()), "token_key_unknown"),
            (
                "no algorithm",
                unsigned(&json!({ "alg": "none", "kid": "ES256" }), &person()),
                "token_algorithm",
            ),
            (
                "no algorithm, in capitals",
                unsigned(&json!({ "alg": "NONE", "kid": "ES256" }), &person()),
                "token_algorithm",
            ),
            (
                "no signature",
                unsigned(&json!({ "alg": "ES256", "kid": "ES256" }), &person()),
                "token_signature",
            ),
            ("HS256 with the public key", confused, "token_algorithm"),
            (
                "RS256 with a key that is none",
                unsigned(&json!({ "alg": "RS256", "kid": "ES256" }), &person()),
                "token_key_unknown",
            ),
            (
                "a critical extension",
                unsigned(&json!({ "alg": "ES256", "kid": "ES256", "crit": ["b64"] }), &person()),
                "unreadable_token",
            ),
            ("other claims under the signature", forged, "token_signature"),
            ("too long", "x".repeat(TOKEN_BYTES_MAX + 1), "token_too_long"),
            ("no token", "falaj".into(), "unreadable_token"),
            ("nothing", String::new(), "unreadable_token"),
        ] {
            assert_eq!(world.said(&token).map(|h| h.id.to_string()), Err(reason), "{what}");
        }
    }

    #[test]
    fn an_access_token_is_of_a_client_that_is_listed_and_for_this_coordinator() {
        let world = world();
        let said = |change: &[(&str, &str)]| {
            let mut claims = pipeline();
            for (name, value) in change {
                claims[*name] = (*value).into();
            }
            let token = world.signed(|h| h["typ"] = "at+jwt".into(), &claims);
            world.said(&token).map(|holder| holder.roles.to_string())
        };
        assert_eq!(said(&[]).as_deref(), Ok("operator"));
        assert_eq!(said(&[("sub", "4711")]), Err("token_name"), "a person's");
        assert_eq!(said(&[("aud", "falaj-cli")]), Err("token_audience"), "for something else");
        let other = [("sub", "other"), ("client_id", "other")];
        assert_eq!(said(&other), Err("token_without_role"), "of a client that is not listed");
        let as_id_token = world.said(&world.signed(|_| {}, &pipeline()));
        assert_eq!(as_id_token.map(|holder| holder.until), Err("token_audience"));
    }

    #[test]
    fn a_claim_names_nobody_else_and_nobody_outside_the_prefix() {
        let mut world = world();
        world.provider.name_claim = Some("preferred_username".into());
        let named = |name: &str| {
            let mut claims = person();
            claims["preferred_username"] = name.into();
            world.said(&world.signed(|_| {}, &claims)).map(|holder| holder.id.name().to_owned())
        };
        assert_eq!(named("omar").as_deref(), Ok("sso-omar"));
        let access = |h: &mut Value| h["typ"] = "at+jwt".into();
        let ci = world.said(&world.signed(access, &pipeline())).expect("a pipeline");
        let digest = ci.id.name().strip_prefix("sso-").expect("the prefix").to_owned();
        for name in
            [digest.as_str(), "", "Omar", "om/ar", "../omar", "omar@health.example", "om ar-"]
        {
            assert_eq!(named(name), Err("token_name"), "{name}");
        }
        let none = world.said(&world.signed(|_| {}, &person()));
        assert_eq!(none.map(|holder| holder.id.to_string()), Err("token_name"));
    }

    /// With a device there need be no nonce; a wrong one is refused all the same.
    #[test]
    fn a_device_needs_no_nonce_where_the_configuration_says_so() {
        let mut world = world();
        world.provider.device = true;
        let mut claims = person();
        claims.as_object_mut().expect("an object").remove("nonce");
        assert!(world.said(&world.signed(|_| {}, &claims)).is_ok());
        claims["nonce"] = "another".into();
        assert_eq!(world.said(&world.signed(|_| {}, &claims)).map(|h| h.until), Err("token_nonce"));
    }
}
