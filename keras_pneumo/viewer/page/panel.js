// The answer in words: probability, threshold, and how many of 100 such answers would be wrong.

const $ = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)}%`;

/** How many of 100 answers of this kind are wrong where a share `prevalence` has the finding (Bayes); null if unknown. */
export function wrongInHundred(about, positive, prevalence) {
  const { sensitivity, specificity } = about;
  if (sensitivity === null || specificity === null) return null;
  const told = positive
    ? sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    : (1 - sensitivity) * prevalence + specificity * (1 - prevalence);
  const wrong = positive ? (1 - specificity) * (1 - prevalence) : (1 - sensitivity) * prevalence;
  return told > 0 ? (100 * wrong) / told : null;
}

export function showAnswer(found, about) {
  const panel = $("answer");
  panel.hidden = false;
  panel.className = found.pneumothorax ? "yes" : "no";
  $("name").textContent = found.name;
  $("word").textContent = found.pneumothorax ? "Pneumothorax: yes" : "Pneumothorax: no";
  $("bar").style.width = percent(found.probability);
  $("tick").style.left = `calc(${100 * found.threshold}% - 1px)`;
  const area = found.area_mm2 ? `, ${(found.area_mm2 / 100).toFixed(1)} cm²` : "";
  const outlined = found.outlined ? `Outlined: ${(100 * found.mask_share).toFixed(1)}% of the image${area}.` : "Nothing is outlined.";
  $("numbers").textContent = `Probability ${found.probability.toFixed(3)} (${found.whose}); yes from ${found.threshold.toFixed(3)}. ${outlined}`;
  $("note").textContent = found.pneumothorax === found.outlined ? ""
    : found.outlined ? "The outline's own rule found something, but the probability is under the threshold."
    : "The probability is over the threshold, but nothing is sure enough to be outlined.";
  $("evidence").textContent = found.evidence;
  showHundred(found, about);
  $("facts").textContent = found.facts.join(" · ");
}

/** The hundred dots and the sentence for the prevalence on the slider. */
export function showHundred(found, about) {
  const slider = $("prevalence");
  $("prevalence-value").textContent = `${slider.value}%`;
  const wrong = wrongInHundred(about, found.pneumothorax, slider.value / 100);
  const whole = wrong === null ? 0 : Math.round(wrong);
  const dots = $("dots");
  if (!dots.children.length) for (let i = 0; i < 100; i++) dots.append(document.createElement("i"));
  [...dots.children].forEach((dot, i) => dot.classList.toggle("wrong", i < whole));
  const word = found.pneumothorax ? "yes" : "no";
  $("hundred").textContent = wrong === null
    ? "Validation does not tell how often such an answer is wrong."
    : wrong === 0 ? `Of 100 such answers (${word}), few would be wrong: on validation none was.`
    : `Of 100 such answers (${word}), ${wrong < 0.5 ? "fewer than 1" : `about ${whole}`} would be wrong.`;
}

export function showAgreement(agreement, reviewed, total, file) {
  const done = total > 0 && reviewed === total;
  const lead = total ? (done ? `All ${total} read. ` : `${reviewed} of ${total} read. `) : "";
  $("agreement").textContent = `${lead}${agreement.sentence} Kept in ${file}.`;
  $("agreement").classList.toggle("done", done);
}

export function showVerdict(verdict) {
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
  }
}

export function showFault(sentence) {
  $("fault").textContent = sentence ?? "";
  $("fault").hidden = !sentence;
}
