//! SQL, the same statements for SQLite and PostgreSQL (DESIGN 4.10).
//!
//! SQLite has one connection that writes, because two would refuse each other's transactions whatever the time-out, and a few that
//! read. PostgreSQL has a pool. Values are whole numbers and texts only; a row that is to be changed after it was
//! looked at is locked by an `update` that changes nothing, which both understand.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use collective_model::{Error, ErrorKind, Result};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Postgres, Row as _, SqlSafeStr, Sqlite};

/// Connections that only read, so that a profile never waits for a write.
const SQLITE_READERS: u32 = 4;
/// Connections to PostgreSQL: well below the 100 that it allows by default, for several servers.
const POSTGRES_CONNECTIONS: u32 = 16;
/// How long a request waits for a connection before the server counts as overloaded.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(10);
/// The database's file when there is no URL.
const SQLITE_FILE: &str = "server.sqlite";

/// The steps of the schema, oldest first. A step that was released is never changed.
const MIGRATIONS: [(i64, &str, &str); 1] =
    [(1, "accounts, rights, repositories and locks", include_str!("../migrations/0001.sql"))];

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
        let writer = pool(1).connect_with(options.clone()).await.map_err(failed)?;
        let readers =
            pool(SQLITE_READERS).connect_with(options.read_only(true)).await.map_err(failed)?;
        Ok(Self::Sqlite { writer, readers })
    }

    async fn postgres(url: &str) -> Result<Self> {
        // The cause would quote the URL, and with it maybe a password.
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| Error::new(ErrorKind::Invalid, "the database URL cannot be read"))?
            .disable_statement_logging();
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
        let text = self.optional_text(column)?.ok_or_else(|| missing(column))?;
        serde_json::from_str(&text).map_err(|cause| missing(column).with_source(cause))
    }
}

fn missing(column: usize) -> Error {
    Error::new(ErrorKind::Corrupt, format!("column {column} of a row in the database is damaged"))
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
        sqlx::Error::Database(database) => match database.code().as_deref() {
            // SQLITE_FULL, and PostgreSQL's disk_full.
            Some("13" | "53100") => (ErrorKind::Unavailable, "the database's disk is full"),
            // SQLITE_BUSY, SQLITE_IOERR…; PostgreSQL's shutdowns, and too many connections.
            Some("5" | "10" | "57P01" | "57P02" | "57P03" | "53300") => {
                (ErrorKind::Unavailable, "the database is not ready")
            }
            _ => (ErrorKind::Internal, "the database refused a statement"),
        },
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => (ErrorKind::Unavailable, "the database cannot be reached"),
        _ => (ErrorKind::Internal, "the database cannot be understood"),
    };
    Error::new(kind, message).with_source(cause)
}
