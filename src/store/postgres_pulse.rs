//! Whether the owner of a Postgres store lives: a count that it raises, in a table of its own, so that saying so waits
//! for no apply but its own.

use crate::ids::Epoch;
use crate::postgres::failure::Failure;
use crate::postgres::pool::{Session, column};
use crate::store::contract::OwnerStatus;
use crate::store::postgres_sql::{no_tenure, signed, unsigned};

/// The statements for one schema.
pub(crate) struct Liveness {
    renew: String,
    pulse: String,
    epoch: String,
}

impl Liveness {
    /// Of a schema whose name was checked.
    pub(crate) fn new(schema: &str) -> Liveness {
        Liveness {
            // The lock keeps an owner that was followed by another from ending that one's tenure in the same moment.
            renew: format!(
                "WITH owner AS (SELECT epoch FROM \"{schema}\".tenure FOR SHARE) \
                 UPDATE \"{schema}\".pulse SET renewals = renewals + 1, ended = $2 \
                 FROM owner WHERE owner.epoch = $1 RETURNING renewals"
            ),
            pulse: format!(
                "SELECT epoch, renewals, ended FROM \"{schema}\".tenure CROSS JOIN \"{schema}\".pulse"
            ),
            epoch: format!("SELECT epoch FROM \"{schema}\".tenure"),
        }
    }

    /// Notes that the owner lives or has ended. Returns the newest epoch if that is another.
    pub(crate) async fn renew(
        &self,
        session: &mut Session,
        epoch: Epoch,
        ends: bool,
    ) -> Result<Option<Epoch>, Failure> {
        const DOING: &str = "renewing the tenure";
        let statement = session.statement(&self.renew).await?;
        if !session.rows(DOING, &statement, &[&signed(epoch.0), &ends]).await?.is_empty() {
            return Ok(None);
        }
        let rows = session.query(DOING, &self.epoch).await?;
        let current = rows.first().ok_or_else(no_tenure)?;
        column(current, 0).map(|current| Some(Epoch(unsigned(current))))
    }

    pub(crate) async fn pulse(&self, session: &mut Session) -> Result<OwnerStatus, Failure> {
        let statement = session.statement(&self.pulse).await?;
        let rows = session.rows("asking for the owner's pulse", &statement, &[]).await?;
        let row = rows.first().ok_or_else(no_tenure)?;
        let (epoch, renewals, ended): (i64, i64, bool) = (column(row, 0)?, column(row, 1)?, column(row, 2)?);
        Ok(if epoch == 0 || ended { OwnerStatus::Free } else { OwnerStatus::Owned(unsigned(renewals)) })
    }
}
