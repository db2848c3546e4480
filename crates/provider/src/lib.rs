//! What each family of providers speaks: base URL, authentication, endpoints, errors, lists of models, proofs of a
//! key, redaction, and the dialects of requests and streams. Pure: values in, values out.
//!
//! Deliberately absent: sockets, clocks, files, the database.
