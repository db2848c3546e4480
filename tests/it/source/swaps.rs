//! Directories and links that are replaced as a whole.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
};

use providerd::source::LookScope;

use super::rig::*;

#[tokio::test]
async fn a_directory_that_goes_and_comes_back_loses_nothing() -> Outcome {
    let base = temporary()?;
    let root = base.path().join("outer/providers.d");
    fs::create_dir_all(&root)?;
    put(&root.join("a.toml"), "0")?;
    let mut rig = Rig::start(&root);
    rig.until_is("a.toml", "0").await;
    for (round, gone) in ["outer/providers.d", "outer", "outer/providers.d"].into_iter().enumerate() {
        fs::remove_dir_all(base.path().join(gone))?;
        rig.until("it is missed", |rig| rig.problem == Some("directory-missing")).await;
        rig.settle().await;
        assert_eq!(rig.state.len(), 1, "nothing is pruned");
        fs::create_dir_all(&root)?;
        let body = (round + 1).to_string();
        put(&root.join("a.toml"), &body)?;
        rig.until_is("a.toml", &body).await;
        // It is watched again.
        put(&root.join("a.toml"), &format!("{body}+"))?;
        rig.until_is("a.toml", &format!("{body}+")).await;
    }
    // Replaced by another one, and by one that lies under a renamed parent.
    for (round, moved) in ["outer/providers.d", "outer"].into_iter().enumerate() {
        fs::rename(base.path().join(moved), base.path().join(format!("old{round}")))?;
        fs::create_dir_all(&root)?;
        put(&root.join("a.toml"), &format!("replaced {round}"))?;
        rig.until_is("a.toml", &format!("replaced {round}")).await;
        put(&root.join("a.toml"), &format!("watched {round}"))?;
        rig.until_is("a.toml", &format!("watched {round}")).await;
    }
    rig.settle().await;
    assert!(rig.pruned.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_swapped_root_is_followed() -> Outcome {
    let base = temporary()?;
    // As git-sync lays it out, with the manifests in a directory of the repository.
    for round in 0..4 {
        let dir = base.path().join(format!(".worktrees/{round}/providers.d"));
        fs::create_dir_all(&dir)?;
        put(&dir.join("a.toml"), &round.to_string())?;
        put(&dir.join("same.toml"), "same")?;
        put(&dir.join(format!("only{round}.toml")), "only")?;
    }
    symlink(".worktrees/0", base.path().join("current"))?;
    let mut rig = Rig::start(&base.path().join("current/providers.d"));
    rig.until_is("a.toml", "0").await;
    for round in 1..4 {
        swap(&base.path().join("current"), &format!(".worktrees/{round}"))?;
        rig.until_is("a.toml", &round.to_string()).await;
        rig.until("the old file is gone", |rig| rig.state.len() == 3).await;
        // The new target is watched, the old one no more.
        let now = base.path().join(format!(".worktrees/{round}/providers.d"));
        put(&now.join("a.toml"), &format!("{round}+"))?;
        rig.until_is("a.toml", &format!("{round}+")).await;
        fs::remove_dir_all(base.path().join(format!(".worktrees/{}", round - 1)))?;
        rig.settle().await;
        assert_eq!(rig.state.len(), 3);
    }
    assert_eq!(rig.pruned, ["only0.toml", "only1.toml", "only2.toml"]);
    Ok(())
}

#[tokio::test]
async fn a_config_map_is_swapped() -> Outcome {
    let base = temporary()?;
    let root = base.path();
    let version = |round: usize| -> std::io::Result<()> {
        let dir = root.join(format!("..v{round}"));
        fs::create_dir(&dir)?;
        put(&dir.join("a.toml"), &round.to_string())?;
        put(&dir.join("b.toml"), "same")
    };
    version(0)?;
    symlink("..v0", root.join("..data"))?;
    symlink("..data/a.toml", root.join("a.toml"))?;
    symlink("..data/b.toml", root.join("b.toml"))?;
    let mut rig = Rig::start(root);
    rig.until_is("a.toml", "0").await;
    for round in 1..4 {
        version(round)?;
        swap(&root.join("..data"), &format!("..v{round}"))?;
        fs::remove_dir_all(root.join(format!("..v{}", round - 1)))?;
        rig.until_is("a.toml", &round.to_string()).await;
        // Behind the links, too, half a file is not read.
        let mut file = File::create(root.join(format!("..v{round}/a.toml")))?;
        file.write_all(b"in place\n")?;
        rig.watcher.handle().poke();
        let seen = rig.activations.len();
        rig.until("poked", |rig| {
            rig.activations.iter().skip(seen).any(|activation| activation.look == LookScope::Everything)
        })
        .await;
        file.write_all(MARKER.as_bytes())?;
        drop(file);
        rig.until_is("a.toml", "in place").await;
    }
    // A new key of the map.
    put(&root.join("..v3/c.toml"), "c")?;
    symlink("..data/c.toml", root.join("c.toml"))?;
    rig.until_is("c.toml", "c").await;
    rig.settle().await;
    assert_eq!(rig.state.len(), 3);
    assert!(rig.pruned.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_linked_directory_is_watched_through_its_link() -> Outcome {
    let base = temporary()?;
    let root = base.path();
    for round in 0..3 {
        fs::create_dir_all(root.join(format!(".versions/{round}/sub")))?;
        put(&root.join(format!(".versions/{round}/sub/a.toml")), &round.to_string())?;
    }
    put(&root.join("plain.toml"), "plain")?;
    symlink(".versions/0", root.join("live"))?;
    let mut rig = Rig::start(root);
    rig.until_is("live/sub/a.toml", "0").await;
    for round in 1..3 {
        swap(&root.join("live"), &format!(".versions/{round}"))?;
        rig.until_is("live/sub/a.toml", &round.to_string()).await;
        put(&root.join(format!(".versions/{round}/sub/a.toml")), "edited")?;
        rig.until_is("live/sub/a.toml", "edited").await;
    }
    fs::remove_file(root.join("live"))?;
    rig.until("it is gone", |rig| rig.pruned == ["live/sub/a.toml"]).await;
    Ok(())
}
