"use strict";
(function () {
  var FEW = 24; // cards that are shown until more are asked for
  var box = document.getElementById("gallery");
  var more = document.getElementById("more");
  var cards = Array.prototype.slice.call(box.querySelectorAll(".card"));
  var state = { outcome: "all", size: "all" };
  var most = FEW;
  function show() {
    var count = 0, fitting = 0;
    cards.forEach(function (card) {
      var tags = card.getAttribute("data-tags").split(" ");
      var size = card.getAttribute("data-size");
      var on = (state.outcome === "all" || tags.indexOf(state.outcome) >= 0) &&
        (state.size === "all" || size === state.size || (state.size === "positive" && size !== "none"));
      if (on) { fitting += 1; }
      card.hidden = !on || fitting > most;
      if (!card.hidden) { count += 1; }
    });
    document.getElementById("shown").textContent = count + " of " + fitting + " shown";
    more.hidden = count === fitting;
    more.textContent = "Show all " + fitting;
    Array.prototype.forEach.call(box.querySelectorAll("button[data-group]"), function (button) {
      var on = state[button.getAttribute("data-group")] === button.getAttribute("data-value");
      button.setAttribute("aria-pressed", on ? "true" : "false");
    });
  }
  box.addEventListener("click", function (event) {
    var button = event.target.closest("button[data-group]");
    if (!button) { return; }
    state[button.getAttribute("data-group")] = button.getAttribute("data-value");
    most = FEW;
    show();
  });
  more.addEventListener("click", function () {
    most = Infinity;
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
