//! Falaj agent.
