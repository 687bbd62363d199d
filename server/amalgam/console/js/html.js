// One tagged template for all pages: what it writes into a page is text or an element, never markup from a string.

import htm from "../vendor/htm.js";
import { h } from "../vendor/preact.js";

export const html = htm.bind(h);
