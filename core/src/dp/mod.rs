//! Differential privacy: mechanisms that seal updates, and the accountant of what they cost.

pub mod calibrate;
pub mod clipping;
pub mod distributed;
pub mod ftrl;
pub mod gauss;
mod lattice;
pub mod pld;
pub mod rdp;
pub mod rotation;
pub mod sampling;
pub mod seal;

pub use clipping::AdaptiveClipping;
pub use distributed::{Distributed, DistributedError, Unit};
pub use ftrl::Ftrl;
pub use gauss::ExactDiscreteGaussian;
pub use rotation::Rotation;
pub use sampling::{Batches, Cyclic, Poisson};
pub use seal::{Mechanism, Noise, NoiseError, Permit, Reservation, SealError};
