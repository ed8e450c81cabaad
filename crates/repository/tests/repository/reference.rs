//! The repository beside a model that a child could check: a list of arrays.

use std::sync::Arc;

use collective_repository::backend::Memory;
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use proptest::strategy::Just;

use crate::world::{Content, World, check, layer, trace, whole};

const BLOCKS: usize = 300;

/// One publication, as the model sees it.
#[derive(Clone, Debug)]
enum Step {
    /// A whole image.
    Whole(Content),
    /// Runs over a version that exists.
    Layer { base: usize, runs: Vec<(u64, Content)> },
    /// A version that exists, again.
    Undo { base: usize },
}

fn numbers() -> impl Strategy<Value = u16> {
    // Few numbers, so that blocks are often equal; many zeros, as on disks.
    prop_oneof![3 => Just(0_u16), 5 => 1_u16..40, 2 => 1_u16..5000]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let runs =
        prop::collection::vec((0..BLOCKS as u64, prop::collection::vec(numbers(), 1..40)), 0..8);
    let step = prop_oneof![
        prop::collection::vec(numbers(), BLOCKS).prop_map(Step::Whole),
        (any::<usize>(), runs).prop_map(|(base, runs)| Step::Layer { base, runs }),
        any::<usize>().prop_map(|base| Step::Undo { base }),
    ];
    prop::collection::vec(step, 1..7)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_version_is_what_the_model_says(
        steps in steps(),
        private in any::<bool>(),
        touched in prop::collection::vec((0_u64..300, 0_u64..30), 0..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(steps, private, &touched));
    }
}

async fn run(steps: Vec<Step>, private: bool, touched: &[(u64, u64)]) {
    let memory = Arc::new(Memory::new());
    let world = if private { World::private(memory).await } else { World::public(memory).await };
    let mut model: Vec<Content> = vec![vec![0; BLOCKS]];
    for (parent, step) in steps.into_iter().enumerate() {
        // Version 0 is the empty disk, that nothing is based on.
        let base_of = |base: usize| Some(base % (parent + 1)).filter(|base| *base > 0);
        let (content, mut source) = match step {
            Step::Whole(content) => (content.clone(), whole(&content)),
            Step::Layer { base, runs } => {
                let base = base_of(base);
                let mut content = model[base.unwrap_or(0)].clone();
                let mut cut = Vec::new();
                for (start, run) in runs {
                    let length = run.len().min(BLOCKS - start as usize);
                    content[start as usize..][..length].copy_from_slice(&run[..length]);
                    cut.push((start, run[..length].to_vec()));
                }
                (content, layer(BLOCKS, base.map(|base| base as u64), cut))
            }
            Step::Undo { base } => {
                let base = base_of(base);
                (model[base.unwrap_or(0)].clone(), layer(BLOCKS, base.map(|it| it as u64), vec![]))
            }
        };
        source.trace = Some(trace(touched));
        world.publish(parent as u64, vec![source]).await.unwrap();
        model.push(content);
    }
    let reopened = world.reopen(world.backend.clone()).await.unwrap();
    for (number, content) in model.iter().enumerate().skip(1) {
        check(&reopened, number as u64, content).await;
    }
}
