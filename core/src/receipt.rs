//! The text of a receipt: a pure function of the order, so writing it twice writes the same object.

use crate::{Order, Shard};

/// Returns the text of the receipt, with `\n` line ends.
pub fn text(order: &Order, shard: &Shard) -> String {
    format!(
        "ORDER RECEIPT\n\
         =============\n\
         Order ID:   {id}\n\
         User:       {user}\n\
         Shard:      {shard}\n\
         Product:    {product}\n\
         Quantity:   {quantity}\n\
         Unit price: ${price}\n\
         Total:      ${total}\n\
         Status:     {status}\n\
         Created at: {created_at}\n",
        id = order.id,
        user = order.user_id,
        shard = shard.info(),
        product = order.product_name,
        quantity = order.quantity,
        price = order.price.to_text(),
        total = order.total().to_text(),
        status = order.status,
        created_at = order.created_at.to_receipt_text(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OrderId;

    /// Checks that the text is stable: receipts, also those of older versions, are compared with it byte by byte.
    #[test]
    fn the_text_of_a_receipt_never_changes() {
        use crate::{NewOrder, ShardMap, Timestamp};

        let map: ShardMap = "shard1=A-M,shard2=N-Z".parse().unwrap();
        let new = NewOrder::parse(br#"{"user_id":"alice","product_name":"Lamp","quantity":2,"price":149.90}"#).unwrap();
        let order = new.into_order(OrderId::nil(), Timestamp::from_unix_microseconds(1_700_000_000_746_070).unwrap());
        let text = text(&order, map.shard_of(&order.user_id));
        assert_eq!(
            text,
            "ORDER RECEIPT\n=============\nOrder ID:   00000000-0000-0000-0000-000000000000\nUser:       alice\n\
             Shard:      shard1 (A-M)\nProduct:    Lamp\nQuantity:   2\nUnit price: $149.90\nTotal:      $299.80\n\
             Status:     created\nCreated at: 2023-11-14T22:13:20.74607Z\n"
        );
    }
}
