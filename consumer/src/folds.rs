//! The folds of this project. To add one, write it in a file of its own, and list it here.

mod distance;
mod history;
mod receipts;
mod wallets;

pub use distance::DistanceFold;
pub use history::HistoryFold;
pub use receipts::ReceiptsFold;
pub use wallets::WalletsFold;

use crate::registry::{Registry, model_fold, row_fold, state_fold};

/// All of them. The first one is that of consumers that name none, and of the baseline.
pub const FOLDS: Registry = Registry(&[
    state_fold::<DistanceFold>,
    row_fold::<HistoryFold>,
    row_fold::<ReceiptsFold>,
    model_fold::<WalletsFold>,
]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::Whose;
    use crate::fold::RowFold;
    use crate::kind::{Rows, State};
    use crate::registry::{Claim, claim};

    #[test]
    fn folds_are_found_by_name() {
        assert_eq!(FOLDS.first().id().name, "distance");
        assert_eq!(FOLDS.find("history").unwrap().id(), HistoryFold::ID);
        let error = FOLDS.find("speed").err().unwrap().to_string();
        assert_eq!(error, "there is no fold \"speed\": give one of distance, history, receipts, wallets");
    }

    #[test]
    fn a_fold_goes_on_with_its_own_state_only() {
        let registered = |name: &str, version| Some((name.to_owned(), version));
        let a = Whose { name: "a".to_owned(), partitions: pglog::Partitions::All };
        let (distance, history) = (State::<DistanceFold>::default(), Rows::<HistoryFold>::default());
        assert!(matches!(claim(&a, registered("distance", 1).as_ref(), &distance), Ok(Claim::Own)));
        assert!(matches!(claim(&a, None, &Rows::<ReceiptsFold>::default()), Ok(Claim::Unclaimed)));
        assert!(claim(&a, None, &history).is_err());
        for (registered, hint) in [
            (registered("distance", 2), "this program has version 1"),
            (registered("history", 1), "start it with --fold history"),
            (None, "registered without a fold"),
        ] {
            let error = claim(&a, registered.as_ref(), &distance).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
