-- What tests of an upgrade take for the next version's migration: a column that producers of this version do not know.
ALTER TABLE orders ADD COLUMN gift_note text;
