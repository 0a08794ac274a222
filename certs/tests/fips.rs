//! The feature `fips`: everything that a handshake uses is of the validated module, and parties speak to each other by it.
#![cfg(feature = "fips")]

use falaj_certs::tls::provider;

#[test]
fn whatever_a_handshake_uses_is_of_the_validated_module() {
    let provider = provider();
    assert!(provider.fips(), "{provider:?}");
    let groups: Vec<String> =
        provider.kx_groups.iter().map(|g| format!("{:?}", g.name())).collect();
    assert_eq!(groups, ["X25519MLKEM768", "secp256r1"]);
}
