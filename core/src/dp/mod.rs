//! Differential privacy: mechanisms that seal updates, and the accountant of what they cost.

pub mod rdp;
pub mod seal;

pub use seal::{Mechanism, Noise, NoiseError, Permit, Reservation, SealError};
