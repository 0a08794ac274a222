//! `falaj-report`: what an audit found, for people. It turns the report's JSON, which follows from a verified
//! bundle, into an HTML page and a PDF in English and Arabic, and its tables into files for other tools.
//!
//! The library reads no bundle and checks no signature; the command lets `falaj-verify` do that first. And it knows no verdict: it joins duties from the
//! clause catalogues with the evidence in the JSON, and shows how strong that is.

pub mod catalog;
pub mod html;
pub mod pdf;
pub mod source;
pub mod tables;
pub mod text;
pub mod view;
pub mod when;
pub mod words;
