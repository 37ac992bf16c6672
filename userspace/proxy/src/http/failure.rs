//! What a request failed for, as filters are told at its end.

use std::error::Error;

use weft_adapters::StreamFailure;

use super::lean::AnswerError;
use crate::error::DataError;

/// Of a request that was not carried out.
pub(super) fn of(error: &DataError) -> StreamFailure {
    match error {
        DataError::Connect { .. } => StreamFailure::Connect,
        DataError::Upstream { source, .. } => of_answer(&**source),
        DataError::UnaskedUpgrade { .. } => StreamFailure::UpstreamProtocol,
        DataError::FilterPause { .. } => StreamFailure::Held,
        // Envoy has no flag for it, or no filter sees it.
        _ => StreamFailure::Other,
    }
}

/// Of an answer that did not come, or not whole.
pub(super) fn of_answer(error: &(dyn Error + 'static)) -> StreamFailure {
    let malformed = match (
        error.downcast_ref::<AnswerError>(),
        error.downcast_ref::<hyper::Error>(),
    ) {
        (Some(error), _) => !matches!(error, AnswerError::Cut | AnswerError::Io(_)),
        (_, Some(error)) => error.is_parse(),
        _ => false,
    };
    if malformed {
        StreamFailure::UpstreamProtocol
    } else {
        StreamFailure::Upstream
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn an_answer_that_is_none_is_no_connection_that_ended() {
        let broke = AnswerError::Io(io::ErrorKind::ConnectionReset.into());
        for (error, failure) in [
            (AnswerError::Cut, StreamFailure::Upstream),
            (broke, StreamFailure::Upstream),
            (AnswerError::Chunk, StreamFailure::UpstreamProtocol),
            (AnswerError::Length, StreamFailure::UpstreamProtocol),
        ] {
            assert_eq!(of_answer(&error), failure, "{error}");
        }
        assert_eq!(of_answer(&io::Error::other("gone")), StreamFailure::Upstream);
        assert_eq!(of(&DataError::RequestBody), StreamFailure::Other);
    }
}
