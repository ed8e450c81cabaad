//! `collective token …`: single-use tokens with which hosts join.

use clap::{Args, Subcommand};
use collective_api::ServerClient;
use collective_api::server::{CreateToken, Token};
use collective_model::{HostName, Result, Timestamp};
use serde::Serialize;

use crate::context::{Context, ServerArguments, now};
use crate::table::{draw, figures, words};
use crate::text::{self, Span};

/// Make the tokens with which computers join
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Create(CreateArguments),
    List(ListArguments),
    Remove(RemoveArguments),
}

/// Make a token with which one computer may join
///
/// The token alone goes to stdout, this once: hand it over as a file. It is good for one computer and for a limited time.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective token create --note attic > token.txt")]
struct CreateArguments {
    /// For what or whom, in your words
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    /// How long it is good for
    #[arg(long, value_name = "TIME", default_value = "1h", allow_negative_numbers = true)]
    life: Span,
}

/// List the tokens, without their secrets
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective token list")]
struct ListArguments {}

/// Remove a token; a computer that joined with it stays
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective token remove 3")]
struct RemoveArguments {
    /// Its number, as `collective token list` shows it
    #[arg(value_parser = text::count::<u64>, allow_negative_numbers = true)]
    token: u64,
}

/// What a program reads of a removed token.
#[derive(Serialize)]
struct Removed {
    id: u64,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    let server = context.server(&arguments.server)?;
    match arguments.verb {
        Verb::Create(arguments) => create(arguments, &server, context).await,
        Verb::List(ListArguments {}) => list(&server, context).await,
        Verb::Remove(RemoveArguments { token }) => {
            server.remove_token(token).await?;
            let text = format!("token {token} is removed");
            context.output.say("token_removed", &Removed { id: token }, || text);
            Ok(())
        }
    }
}

async fn create(
    arguments: CreateArguments,
    server: &ServerClient,
    context: &Context,
) -> Result<()> {
    let request = CreateToken { note: arguments.note, life_s: arguments.life.0.as_secs() };
    let created = server.create_token(&request).await?;
    let expires = text::until(created.token.expires, now());
    context
        .output
        .note(&format!("Good for one computer; expires {expires}. It is shown only now."));
    context.output.say("token_created", &created, || String::from(created.secret.clone()));
    Ok(())
}

async fn list(server: &ServerClient, context: &Context) -> Result<()> {
    let tokens = server.tokens().await?;
    for token in &tokens {
        context.output.object("token", token);
    }
    if !context.output.is_json() {
        let now = now();
        let rows = tokens.iter().map(|token| row(token, now)).collect();
        let columns = [figures("TOKEN"), words("STATE"), words("NOTE")];
        context.output.text(&draw(&columns, rows, "no token"));
    }
    Ok(())
}

fn row(token: &Token, now: Timestamp) -> Vec<String> {
    let state = match token.used_by.as_ref().map(HostName::as_str) {
        Some(host) => format!("used by {host}"),
        None if token.expires <= now => "expired".to_owned(),
        None => format!("expires {}", text::until(token.expires, now)),
    };
    vec![token.id.to_string(), state, token.note.clone()]
}

#[cfg(test)]
mod tests {
    use collective_api::server::Token;
    use collective_model::Timestamp;

    use super::row;

    #[test]
    fn a_token_is_used_expired_or_good_for_a_while() {
        let good =
            Token { id: 3, note: "attic".to_owned(), expires: Timestamp(3_600_000), used_by: None };
        let used = Token { used_by: Some("attic".parse().unwrap()), ..good.clone() };
        let now = Timestamp(0);
        assert_eq!(row(&good, now), ["3", "expires in 1 h", "attic"]);
        assert_eq!(row(&good, Timestamp(3_600_000))[1], "expired");
        assert_eq!(row(&used, now)[1], "used by attic");
    }
}
