//! A picture from the database: read, put together, built.
//!
//! Its job: the one way from rows to a picture, for what serves and for what explains. Not its job: when.

use chrono::Utc;
use gateway::picture::{Picture, PictureInput, PictureProblem};
use zeroize::Zeroizing;

use super::picture_input;
use crate::{
    backend, config,
    secret::Byok,
    store::{Result, Store},
};

/// What a picture is made of, and what was left out of it, in words.
///
/// # Errors
/// The database cannot be read.
pub async fn read_input(
    store: &Store,
    byok: &Byok,
    settings: &config::Gateway,
) -> Result<(PictureInput, Vec<String>)> {
    let keyring = if store.is_blank() { None } else { backend::keyring(store, byok).await? };
    let rows = store.picture_rows().await?;
    Ok(picture_input(&rows, settings, byok, keyring.as_ref(), Utc::now().timestamp()))
}

/// The picture, with its keys opened.
pub fn build(input: &PictureInput, byok: &Byok) -> (Picture, Vec<PictureProblem>) {
    Picture::build(input, |token| {
        let secret = byok.open(token).ok()?;
        Some(Zeroizing::new(secret.expose().as_bytes().to_vec()))
    })
}
