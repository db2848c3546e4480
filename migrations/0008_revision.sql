-- The commit from which a provider was last changed; none where its manifests do not lie in Git.
ALTER TABLE providerd.managed ADD COLUMN IF NOT EXISTS revision text;
