//! `collective group …`: groups of people, to whom appliances are granted.

use clap::{Args, Subcommand};
use collective_api::ServerClient;
use collective_api::server::Group;
use collective_model::{GroupName, Result, UserName};
use serde::Serialize;

use crate::context::{Context, ServerArguments};
use crate::table::{draw, words};

/// Make groups of people and say who is in them
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Add(AddArguments),
    List(ListArguments),
    Remove(RemoveArguments),
    Member(MemberArguments),
}

/// Make a group
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective group add office")]
struct AddArguments {
    /// Its name
    group: GroupName,
}

/// List the groups and who is in them
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective group list")]
struct ListArguments {}

/// Remove a group and what was granted to it; its members stay
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective group remove office")]
struct RemoveArguments {
    /// Which group
    group: GroupName,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Put a user into a group, or take them out
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective group member office ann\n  \
    collective group member office ann --remove")]
struct MemberArguments {
    /// Which group
    group: GroupName,
    /// Who
    user: UserName,
    /// Take them out
    #[arg(long)]
    remove: bool,
}

/// What a program reads of a change.
#[derive(Serialize)]
struct Changed {
    group: GroupName,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserName>,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    let server = context.server(&arguments.server)?;
    match arguments.verb {
        Verb::Add(AddArguments { group }) => {
            let group = server.create_group(&group).await?;
            context.output.say("group", &group, || format!("group {} is made", group.name));
        }
        Verb::List(ListArguments {}) => list(&server, context).await?,
        Verb::Remove(RemoveArguments { group, yes }) => {
            if !yes {
                let question = format!("Remove the group `{group}` and what was granted to it?");
                context.prompt.confirm(&question)?;
            }
            server.remove_group(&group).await?;
            let text = format!("group {group} is removed");
            context.output.say("group_removed", &Changed { group, user: None }, || text);
        }
        Verb::Member(arguments) => member(arguments, &server, context).await?,
    }
    Ok(())
}

async fn list(server: &ServerClient, context: &Context) -> Result<()> {
    let groups = server.groups().await?;
    for group in &groups {
        context.output.object("group", group);
    }
    if !context.output.is_json() {
        context.output.text(&table(&groups));
    }
    Ok(())
}

fn table(groups: &[Group]) -> String {
    let rows = groups
        .iter()
        .map(|group| vec![group.name.to_string(), super::names(&group.members)])
        .collect();
    draw(&[words("GROUP"), words("MEMBERS")], rows, "no group yet")
}

async fn member(
    arguments: MemberArguments,
    server: &ServerClient,
    context: &Context,
) -> Result<()> {
    let MemberArguments { group, user, remove } = arguments;
    let (tag, text) = if remove {
        server.remove_member(&group, &user).await?;
        ("member_removed", format!("{user} is no longer in group {group}"))
    } else {
        server.add_member(&group, &user).await?;
        ("member_added", format!("{user} is in group {group}"))
    };
    context.output.say(tag, &Changed { group, user: Some(user) }, || text);
    Ok(())
}
