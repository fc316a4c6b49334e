// A receipt in a dialog: the stored text as it is, or plainly why it cannot be shown now.

import * as api from './api.js';
import { $, say, show } from './dom.js';

const dialog = $('receipt');
const text = $('receipt-text');
const again = $('receipt-again');
let shown = null;

export function start() {
  $('receipt-close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  dialog.addEventListener('close', () => {
    shown = null;
  });
  again.addEventListener('click', () => load(shown));
}

export function open(id) {
  say($('receipt-order'), id);
  dialog.showModal();
  load(id);
}

async function load(id) {
  shown = id;
  say(text, 'Loading…');
  text.hidden = false;
  $('receipt-trouble').hidden = true;
  try {
    const receipt = await api.receipt(id);
    if (shown === id) say(text, receipt);
  } catch (error) {
    if (shown !== id) return;
    text.hidden = true;
    $('receipt-trouble').hidden = false;
    show($('receipt-why'), why(error));
    again.hidden = error.receiptStatus === 'missing';
  }
}

function why(error) {
  if (error.receiptStatus === 'pending') return 'Not written yet. The order is safe; its receipt follows as soon as the object store takes it.';
  if (error.receiptStatus === 'missing') return 'The receipt was written once, but the object store no longer has it.';
  if (error.status === 503) return `The object store does not answer. ${error.message}`;
  return error.message;
}
