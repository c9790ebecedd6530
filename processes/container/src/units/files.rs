//! Units and their files in the spool.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use uuid::Uuid;

use super::State;

/// The states of the units that have these files. A file without a unit is not in the result.
///
/// # Errors
/// Postgres is away.
pub async fn states_of_files(client: &Client, names: &[String]) -> Result<HashMap<String, State>> {
    let query = "-- container::states_of_files
        SELECT spool_name, state FROM units WHERE spool_name = ANY ($1::text[])";
    let rows = client.query(query, &[&names]).await.context("looking for the units of files")?;
    rows.iter().map(|row| Ok((row.get("spool_name"), row.get::<_, &str>("state").parse()?))).collect()
}

/// The files of this spool whose units are final, and which may still be there.
///
/// # Errors
/// Postgres is away.
pub async fn final_files(client: &Client, spool_id: &str, len_max: i64) -> Result<Vec<String>> {
    let query = "-- container::final_files
        SELECT spool_name FROM units
        WHERE spool_id = $1::text::uuid AND file_gone_at IS NULL AND settled_at IS NOT NULL
        ORDER BY settled_at LIMIT $2";
    let rows = client.query(query, &[&spool_id, &len_max]).await.context("looking for files that are not needed")?;
    Ok(rows.iter().map(|row| row.get("spool_name")).collect())
}

/// Notes that files were deleted.
///
/// # Errors
/// Postgres is away.
pub async fn note_gone(client: &Client, names: &[String]) -> Result<()> {
    let note = "-- container::note_gone
        UPDATE units SET file_gone_at = now() WHERE spool_name = ANY ($1::text[]) AND file_gone_at IS NULL";
    client.execute(note, &[&names]).await.context("noting that files are gone")?;
    Ok(())
}

/// Registers the spool. `false`: this database knows it.
///
/// # Errors
/// Postgres is away; or the folder is new, and the database has open units of a spool at this place: the folder is not mounted.
pub async fn register_spool(client: &Client, spool_id: &str, place: &str) -> Result<bool> {
    let register = "-- container::register_spool
        INSERT INTO spools (spool_id, place) VALUES ($1::text::uuid, $2) ON CONFLICT (spool_id) DO UPDATE SET place = $2
        RETURNING xmax = 0";
    Ok(client.query_one(register, &[&spool_id, &place]).await.context("registering the spool")?.get(0))
}

/// The spools at this place whose units are not final: by their ids.
///
/// # Errors
/// Postgres is away.
pub async fn open_spools_at(client: &Client, place: &str) -> Result<Vec<String>> {
    let query = "-- container::open_spools_at
        SELECT spool_id::text FROM spools AS s WHERE place = $1
            AND EXISTS (SELECT FROM units AS u WHERE u.spool_id = s.spool_id AND u.settled_at IS NULL)";
    let rows = client.query(query, &[&place]).await.context("looking for spools at this place")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The id of each folder that destinations of the kind `files` use, by its path.
pub type Folders = BTreeMap<String, Uuid>;

/// The folders that this spool has used before. A folder belongs to a spool, because another machine may have another one at the
/// same path.
///
/// # Errors
/// Postgres is away.
pub async fn known_folders(client: &Client, spool_id: &str) -> Result<Folders> {
    let query = "-- container::known_folders
        SELECT key, value FROM spools, jsonb_each_text(folders) WHERE spool_id = $1::text::uuid";
    let rows = client.query(query, &[&spool_id]).await.context("looking for the folders of this spool")?;
    rows.iter()
        .map(|row| Ok((row.get("key"), Uuid::try_parse(row.get("value")).context("reading the id of a folder")?)))
        .collect()
}

/// Registers folders. An id that is known stays. Returns whether it is this one for each folder: of two processes that begin at
/// the same time on different disks, one finds the id of the other.
///
/// # Errors
/// Postgres is away.
pub async fn register_folders(client: &Client, spool_id: &str, folders: &Folders) -> Result<bool> {
    let folders: BTreeMap<&str, String> = folders.iter().map(|(path, id)| (path.as_str(), id.to_string())).collect();
    let folders = serde_json::to_string(&folders)?;
    let register = "-- container::register_folders
        UPDATE spools SET folders = $2::text::jsonb || folders WHERE spool_id = $1::text::uuid
        RETURNING folders @> $2::text::jsonb";
    let row = client.query_one(register, &[&spool_id, &folders]).await.context("registering folders")?;
    Ok(row.get(0))
}
