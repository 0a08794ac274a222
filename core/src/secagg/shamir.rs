//! Shamir's secret sharing (Shamir 1979) of 32-byte secrets, byte by byte over the field of 256 elements.
//!
//! Multiplication is by shifts and masks, so its time does not depend on the values.

use zeroize::Zeroizing;

/// Product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
fn times(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a, b, 0);
    for _ in 0..8 {
        product ^= a & 0_u8.wrapping_sub(b & 1);
        let carry = 0_u8.wrapping_sub(a >> 7);
        a = (a << 1) ^ (carry & 0x1b);
        b >>= 1;
    }
    product
}

/// One over `a`, which is not zero: `a^254`.
fn inverse(a: u8) -> u8 {
    let (mut power, mut product) = (a, 1);
    for _ in 0..7 {
        power = times(power, power);
        product = times(product, power);
    }
    product
}

/// Shares of `secret` at `points`, any `threshold` of which give it back and fewer of which say nothing.
/// `coefficients` is uniform randomness, 32 bytes for each share of the threshold but one.
pub(super) fn deal(
    secret: &[u8; 32],
    points: &[u8],
    coefficients: &[[u8; 32]],
) -> Vec<Zeroizing<[u8; 32]>> {
    debug_assert!(!points.contains(&0));
    let share = |&x: &u8| {
        let mut share = Zeroizing::new([0; 32]);
        // Horner's rule, from the highest coefficient to the secret.
        for coefficient in coefficients.iter().rev().chain([secret]) {
            for (s, c) in share.iter_mut().zip(coefficient) {
                *s = times(*s, x) ^ c;
            }
        }
        share
    };
    points.iter().map(share).collect()
}

/// The secret of shares at different points: the polynomial through them at zero (Lagrange).
pub(super) fn combine(shares: &[(u8, [u8; 32])]) -> Zeroizing<[u8; 32]> {
    let mut secret = Zeroizing::new([0; 32]);
    for (i, (x, share)) in shares.iter().enumerate() {
        let mut weight = 1;
        for (j, (other, _)) in shares.iter().enumerate() {
            if i != j {
                weight = times(weight, times(*other, inverse(*x ^ other)));
            }
        }
        for (s, v) in secret.iter_mut().zip(share) {
            *s ^= times(weight, *v);
        }
    }
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplication_is_the_fields() {
        // FIPS 197, section 4.2: {57} times {83} is {c1}, and {57} times {13} is {fe}.
        assert_eq!((times(0x57, 0x83), times(0x57, 0x13)), (0xc1, 0xfe));
        for a in 1..=255 {
            assert_eq!(times(a, inverse(a)), 1);
        }
    }

    #[test]
    fn any_threshold_of_shares_gives_the_secret_and_one_fewer_gives_anything() {
        let secret = std::array::from_fn(|i| u8::try_from(i * 7).expect("small"));
        let coefficients = [[3; 32], [250; 32], [17; 32]];
        let points: Vec<u8> = (1..=9).collect();
        let shares = deal(&secret, &points, &coefficients);
        let pick = |of: &[u8]| -> Vec<(u8, [u8; 32])> {
            of.iter().map(|&x| (x, *shares[usize::from(x) - 1])).collect()
        };
        for of in [[1, 2, 3, 4], [9, 2, 7, 5], [6, 1, 8, 9]] {
            assert_eq!(*combine(&pick(&of)), secret);
        }
        // With three shares, a fourth value of any kind leads to any secret: each secret is as likely.
        let mut seen = std::collections::BTreeSet::new();
        for guess in 0..=255 {
            let mut four = pick(&[1, 2, 3]);
            four.push((4, [guess; 32]));
            seen.insert(combine(&four)[0]);
        }
        assert_eq!(seen.len(), 256);
    }
}
