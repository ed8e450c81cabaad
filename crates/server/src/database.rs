//! SQL, the same statements for SQLite and PostgreSQL (DESIGN 4.10).
//!
//! SQLite has one connection that writes, because two would refuse each other's transactions whatever the time-out, and a few that
//! read. PostgreSQL has a pool. Values are whole numbers and texts only; a row that is to be changed after it was
//! looked at is locked by an `update` that changes nothing, which both understand.

use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use collective_model::{Error, ErrorKind, Result};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteError, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection as _, Postgres, Row as _, SqlSafeStr, Sqlite};

/// Connections that only read, so that a profile never waits for a write.
const SQLITE_READERS: u32 = 4;
/// Connections to PostgreSQL: well below the 100 that it allows by default, for several servers.
const POSTGRES_CONNECTIONS: u32 = 16;
/// How long a request waits for a connection before the server counts as overloaded.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(10);
/// The database's file when there is no URL.
const SQLITE_FILE: &str = "server.sqlite";

/// What is said when there is no room for the database.
const DISK_FULL: &str = "the disk of the server's database is full";
/// What is said of every other refusal.
const REFUSED: &str = "the database refused a statement";

/// The steps of the schema, oldest first. A step that was released is never changed.
const MIGRATIONS: [(i64, &str, &str); 4] = [
    (1, "accounts, rights, repositories and locks", include_str!("../migrations/0001.sql")),
    (2, "removals that are not finished", include_str!("../migrations/0002.sql")),
    (3, "retention rules and checks", include_str!("../migrations/0003.sql")),
    (4, "what is read of appliances", include_str!("../migrations/0004.sql")),
];

/// The database. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Database {
    /// A file beside the repositories.
    Sqlite { writer: SqlitePool, readers: SqlitePool },
    /// A server of its own.
    Postgres(PgPool),
}

/// A value of a statement.
#[derive(Clone, Debug)]
pub enum Value {
    Integer(Option<i64>),
    Text(Option<String>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(Some(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Integer(value)
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

/// Makes a text value of a name, an id or anything else that is shown as text.
pub fn text(value: &impl ToString) -> Value {
    Value::Text(Some(value.to_string()))
}

/// Runs a statement on an executor of one driver; the texts are constants of this program.
macro_rules! run {
    ($driver:ty, $row:path, $executor:expr, $sql:expr, $values:expr) => {{
        let mut query = sqlx::query::<$driver>($sql);
        for value in $values {
            query = match value {
                Value::Integer(value) => query.bind(*value),
                Value::Text(value) => query.bind(value.clone()),
            };
        }
        let rows = query.fetch_all($executor).await.map_err(failed)?;
        Ok(rows.into_iter().map($row).collect())
    }};
}

impl Database {
    /// Opens the database and brings its schema up to date.
    pub async fn open(url: Option<&str>, directory: &Path) -> Result<Self> {
        let database = match url {
            Some(url) if url.starts_with("postgres:") || url.starts_with("postgresql:") => {
                Self::postgres(url).await?
            }
            Some(_) => {
                return Err(Error::new(ErrorKind::Invalid, "the database URL is not known")
                    .with_hint("leave it out for SQLite, or write postgres://…"));
            }
            None => Self::sqlite(&directory.join(SQLITE_FILE)).await?,
        };
        database.migrate().await?;
        Ok(database)
    }

    async fn sqlite(path: &Path) -> Result<Self> {
        // SQLite takes its files' mode from the database's: they are to be their owner's alone.
        if !path.exists() {
            crate::files::write_private(path, b"")?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(ACQUIRE_LIMIT)
            .disable_statement_logging();
        let pool = |connections| {
            SqlitePoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_LIMIT)
        };
        // SQLite itself ends a transaction when its disk is full. The driver's own undoing then fails, and it would count the
        // connection as within a transaction for ever: such a one is exchanged.
        let writer = pool(1)
            .before_acquire(|connection, _| {
                Box::pin(async move { Ok(!connection.is_in_transaction()) })
            })
            .connect_with(options.clone())
            .await
            .map_err(failed)?;
        let readers =
            pool(SQLITE_READERS).connect_with(options.read_only(true)).await.map_err(failed)?;
        Ok(Self::Sqlite { writer, readers })
    }

    async fn postgres(url: &str) -> Result<Self> {
        // The cause would quote the URL, and with it maybe a password.
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| Error::new(ErrorKind::Invalid, "the database URL cannot be read"))?
            .disable_statement_logging();
        check_local(&options)?;
        let pool = PgPoolOptions::new()
            .max_connections(POSTGRES_CONNECTIONS)
            .acquire_timeout(ACQUIRE_LIMIT)
            .connect_with(options)
            .await
            .map_err(failed)?;
        Ok(Self::Postgres(pool))
    }

    async fn migrate(&self) -> Result<()> {
        let steps = MIGRATIONS.map(|(version, what, sql)| {
            let sql = sql.into_sql_str();
            Migration::new(version, what.into(), MigrationType::Simple, sql, false)
        });
        let migrator = Migrator::with_migrations(steps.into());
        let done = match self {
            Self::Sqlite { writer, .. } => migrator.run(writer).await,
            Self::Postgres(pool) => migrator.run(pool).await,
        };
        done.map_err(|cause| {
            Error::new(ErrorKind::Unavailable, "cannot bring the database up to date")
                .with_source(cause)
        })
    }

    /// Reads.
    pub async fn read(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite { readers, .. } => run!(Sqlite, Row::Sqlite, readers, sql, values),
            Self::Postgres(pool) => run!(Postgres, Row::Postgres, pool, sql, values),
        }
    }

    /// Writes with one statement; durable when it returns.
    pub async fn write(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite { writer, .. } => run!(Sqlite, Row::Sqlite, writer, sql, values),
            Self::Postgres(pool) => run!(Postgres, Row::Postgres, pool, sql, values),
        }
    }

    /// Begins a transaction; it is undone unless it is committed.
    pub async fn begin(&self) -> Result<Transaction> {
        Ok(match self {
            Self::Sqlite { writer, .. } => {
                let begun = writer.begin_with("BEGIN IMMEDIATE").await;
                Transaction::Sqlite(begun.map_err(failed)?)
            }
            Self::Postgres(pool) => Transaction::Postgres(pool.begin().await.map_err(failed)?),
        })
    }

    /// Closes all connections.
    pub async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// Statements that happen all or not at all.
pub enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Transaction {
    /// Runs a statement.
    pub async fn run(&mut self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(inner) => run!(Sqlite, Row::Sqlite, &mut **inner, sql, values),
            Self::Postgres(inner) => run!(Postgres, Row::Postgres, &mut **inner, sql, values),
        }
    }

    /// Makes it durable.
    pub async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(inner) => inner.commit().await.map_err(failed),
            Self::Postgres(inner) => inner.commit().await.map_err(failed),
        }
    }
}

/// A row of an answer.
#[derive(Debug)]
pub enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// Returns the number in a column.
    pub fn integer(&self, column: usize) -> Result<i64> {
        self.optional_integer(column)?.ok_or_else(|| missing(column))
    }

    /// Returns the number in a column that may be empty.
    pub fn optional_integer(&self, column: usize) -> Result<Option<i64>> {
        match self {
            Self::Sqlite(row) => row.try_get(column).map_err(failed),
            Self::Postgres(row) => row.try_get(column).map_err(failed),
        }
    }

    /// Returns the text in a column that may be empty.
    pub fn optional_text(&self, column: usize) -> Result<Option<String>> {
        match self {
            Self::Sqlite(row) => row.try_get(column).map_err(failed),
            Self::Postgres(row) => row.try_get(column).map_err(failed),
        }
    }

    /// Returns the name or id in a column.
    pub fn parse<T: FromStr<Err = Error>>(&self, column: usize) -> Result<T> {
        self.parse_optional(column)?.ok_or_else(|| missing(column))
    }

    /// Returns the name or id in a column that may be empty.
    pub fn parse_optional<T: FromStr<Err = Error>>(&self, column: usize) -> Result<Option<T>> {
        let Some(text) = self.optional_text(column)? else { return Ok(None) };
        text.parse().map(Some).map_err(|cause: Error| missing(column).with_source(cause))
    }

    /// Returns what a column holds as JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&self, column: usize) -> Result<T> {
        self.json_optional(column)?.ok_or_else(|| missing(column))
    }

    /// Returns what a column that may be empty holds as JSON.
    pub fn json_optional<T: serde::de::DeserializeOwned>(
        &self,
        column: usize,
    ) -> Result<Option<T>> {
        let Some(text) = self.optional_text(column)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|cause| missing(column).with_source(cause))
    }
}

fn missing(column: usize) -> Error {
    Error::new(ErrorKind::Corrupt, format!("column {column} of a row in the database is damaged"))
}

/// Refuses a database on another computer: the driver is built without TLS, and proofs of passwords, locks and rights would
/// cross the network in the clear, for everybody on the way to read and to change.
fn check_local(options: &PgConnectOptions) -> Result<()> {
    let host = options.get_host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let local = options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || address.is_ok_and(|address| address.is_loopback());
    if local {
        return Ok(());
    }
    let message = format!("the database at `{host}` would be spoken to without encryption");
    Err(Error::new(ErrorKind::Invalid, message).with_hint(
        "use a PostgreSQL on this computer, by its socket (postgres://%2Frun%2Fpostgresql/NAME) or at 127.0.0.1; \
         an encrypted tunnel that ends there will do",
    ))
}

/// What a code of SQLite means; its low byte is the kind, the rest says where it happened.
fn refused_by_sqlite(code: &str) -> (ErrorKind, &'static str) {
    match code.parse::<u32>().map(|code| code & 0xff) {
        // FULL.
        Ok(13) => (ErrorKind::Unavailable, DISK_FULL),
        // BUSY and LOCKED.
        Ok(5 | 6) => (ErrorKind::Unavailable, "the database is busy"),
        // READONLY, IOERR and CANTOPEN: the disk, or what somebody did to the files.
        Ok(8 | 10 | 14) => {
            (ErrorKind::Unavailable, "the files of the database cannot be read or written")
        }
        // CORRUPT and NOTADB.
        Ok(11 | 26) => (ErrorKind::Corrupt, "the database is damaged"),
        _ => (ErrorKind::Internal, REFUSED),
    }
}

/// What an SQLSTATE of PostgreSQL means.
fn refused_by_postgres(code: &str) -> (ErrorKind, &'static str) {
    match code {
        // disk_full.
        "53100" => (ErrorKind::Unavailable, DISK_FULL),
        // Shutdowns, too many connections, deadlocks, transactions that must be tried again.
        "57P01" | "57P02" | "57P03" | "53300" | "40P01" | "40001" => {
            (ErrorKind::Unavailable, "the database is not ready")
        }
        _ => (ErrorKind::Internal, REFUSED),
    }
}

/// Says what a caller can do about an error of SQL.
fn failed(cause: sqlx::Error) -> Error {
    let (kind, message) = match &cause {
        sqlx::Error::Database(database) if database.is_unique_violation() => {
            (ErrorKind::Conflict, "it exists already")
        }
        sqlx::Error::Database(database) if database.is_foreign_key_violation() => (
            ErrorKind::Conflict,
            "it belongs together with something that is not there, or still is",
        ),
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            if database.try_downcast_ref::<SqliteError>().is_some() {
                refused_by_sqlite(&code)
            } else {
                refused_by_postgres(&code)
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => (ErrorKind::Unavailable, "the database cannot be reached"),
        _ => (ErrorKind::Internal, "the database cannot be understood"),
    };
    Error::new(kind, message).with_source(cause)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use collective_model::ErrorKind;
    use sqlx::postgres::PgConnectOptions;

    use super::{check_local, refused_by_postgres, refused_by_sqlite};

    #[test]
    fn a_code_of_sqlite_means_the_same_with_and_without_its_details() {
        // FULL; BUSY, BUSY_SNAPSHOT; IOERR, IOERR_WRITE, IOERR_SHMSIZE; CANTOPEN; READONLY_DBMOVED.
        for code in ["13", "5", "517", "10", "778", "4874", "14", "1032"] {
            assert_eq!(refused_by_sqlite(code).0, ErrorKind::Unavailable, "{code}");
        }
        for code in ["1", "20", "", "23505"] {
            assert_eq!(refused_by_sqlite(code).0, ErrorKind::Internal, "{code}");
        }
        assert_eq!(refused_by_sqlite("267").0, ErrorKind::Corrupt);
        assert!(refused_by_sqlite("13").1.contains("full"));
        assert!(refused_by_postgres("53100").1.contains("full"));
        assert_eq!(refused_by_postgres("42601").0, ErrorKind::Internal);
    }

    #[test]
    fn a_database_across_the_network_is_refused_and_one_on_this_computer_is_not() {
        let check = |url: &str| check_local(&PgConnectOptions::from_str(url).unwrap());
        for url in ["%2Frun%2Fpostgresql", "localhost", "127.0.0.1", "127.9.9.9:5433", "[::1]"] {
            assert!(check(&format!("postgres://ann:secret@{url}/collective")).is_ok(), "{url}");
        }
        for host in ["192.0.2.1", "db.example", "localhost.example", "127.0.0.1.example"] {
            let error = check(&format!("postgres://ann:secret@{host}/collective")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(host), "{error}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
        let elsewhere = check("postgres://localhost/collective?hostaddr=192.0.2.1");
        assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::Invalid);
    }
}
