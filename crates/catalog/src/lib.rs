//! What manifests declare and what follows from it: the model, texts to objects with diagnostics, the table of
//! routes, the plan, prices and limits. Pure: values in, values out.
//!
//! Deliberately absent: sockets, clocks, files, the database.

pub mod price;
