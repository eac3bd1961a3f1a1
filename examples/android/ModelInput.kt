package com.example.mobilevit

import android.content.ContentResolver
import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.ImageDecoder
import android.graphics.Matrix
import android.graphics.Paint
import android.net.Uri
import androidx.annotation.RequiresApi
import org.json.JSONObject

/** Reads a photo upright. `BitmapFactory` would leave portrait photos lying on their side; `ImageDecoder` does not. */
@RequiresApi(28)
fun readPhoto(resolver: ContentResolver, photo: Uri): Bitmap =
    ImageDecoder.decodeBitmap(ImageDecoder.createSource(resolver, photo)) { decoder, _, _ ->
        decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // a bitmap of the GPU cannot be drawn into another one
    }

/**
 * How the exported file wants its image, from the record that came out of it: resize, then crop the centre. Everything
 * after that (scale, channel order, softmax) is inside the file.
 */
class ModelInput(context: Context) {
    private val record = JSONObject(context.assets.open("mobilevit_hub.json").bufferedReader().use { it.readText() })
    private val resize = record.getJSONObject("preprocessing").getJSONObject("resize")
    private val crop = record.getJSONObject("preprocessing").getJSONObject("crop")
    val width = crop.getInt("width")
    val height = crop.getInt("height")
    val dtype: String = record.getJSONObject("input").getString("dtype")
    val classes = record.getJSONObject("labels").getInt("count")

    init {
        val output = record.getJSONObject("output").getString("name")
        check(output == "probabilities") { "The file returns $output; export it with --output-type probabilities." }
    }

    /**
     * Makes the input from an upright photo.
     *
     * @param photo Any size; not of `Bitmap.Config.HARDWARE`.
     * @return [width] × [height], ARGB_8888.
     */
    fun prepare(photo: Bitmap): Bitmap {
        var picture = photo
        // One bilinear step looks at four pixels for each new one and skips the others; halving averages all of them.
        while (maxOf(scaleX(picture), scaleY(picture)) <= 0.5f) {
            picture = Bitmap.createScaledBitmap(picture, picture.width / 2, picture.height / 2, true)
        }
        val resizedWidth = picture.width * scaleX(picture)
        val resizedHeight = picture.height * scaleY(picture)
        val place = Matrix()
        place.setScale(scaleX(picture), scaleY(picture))
        place.postTranslate((width - resizedWidth) / 2, (height - resizedHeight) / 2)

        val input = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
        val canvas = Canvas(input)
        canvas.drawColor(Color.BLACK) // shows where the resized photo is smaller than the crop
        canvas.drawBitmap(picture, place, Paint(Paint.FILTER_BITMAP_FLAG))
        return input
    }

    private fun scaleX(picture: Bitmap): Float = scale("width", picture.width, picture)

    private fun scaleY(picture: Bitmap): Float = scale("height", picture.height, picture)

    private fun scale(side: String, length: Int, picture: Bitmap): Float =
        if (resize.has("shortest_edge")) {
            resize.getInt("shortest_edge").toFloat() / minOf(picture.width, picture.height)
        } else {
            resize.getInt(side).toFloat() / length
        }
}
