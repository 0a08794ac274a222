//! Falaj.
