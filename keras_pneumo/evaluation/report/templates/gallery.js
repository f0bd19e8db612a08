"use strict";
(function () {
  var box = document.getElementById("gallery");
  var cards = Array.prototype.slice.call(box.querySelectorAll(".card"));
  var state = { outcome: "all", size: "all" };
  function show() {
    var count = 0;
    cards.forEach(function (card) {
      var tags = card.getAttribute("data-tags").split(" ");
      var size = card.getAttribute("data-size");
      var on = (state.outcome === "all" || tags.indexOf(state.outcome) >= 0) &&
        (state.size === "all" || size === state.size || (state.size === "positive" && size !== "none"));
      card.hidden = !on;
      if (on) { count += 1; }
    });
    document.getElementById("shown").textContent = count + " of " + cards.length + " shown";
    Array.prototype.forEach.call(box.querySelectorAll("button[data-group]"), function (button) {
      var on = state[button.getAttribute("data-group")] === button.getAttribute("data-value");
      button.setAttribute("aria-pressed", on ? "true" : "false");
    });
  }
  box.addEventListener("click", function (event) {
    var button = event.target.closest("button[data-group]");
    if (!button) { return; }
    state[button.getAttribute("data-group")] = button.getAttribute("data-value");
    show();
  });
  document.getElementById("outlines").addEventListener("change", function (event) {
    box.classList.toggle("bare", !event.target.checked);
  });
  window.location.hash.replace(/^#/, "").split("&").forEach(function (pair) {
    var parts = pair.split("=");
    if (parts.length === 2 && Object.prototype.hasOwnProperty.call(state, parts[0])) { state[parts[0]] = parts[1]; }
  });
  box.querySelector(".filters").hidden = false;
  show();
})();
